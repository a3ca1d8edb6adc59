"""The bench on a few garments: what its table holds, what it keeps, and what its figures are."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import placket
from placket import scores
from placket.cli import main
from placket.data import Dataset
from placket.data.columns import Labels
from placket.models import METHODS
from placket.protocols import asfr_map_all, embed_from
from placket.scores import rankings, training
from placket.scores.settings import SETTINGS, TITLES, Entry, Setting, small_config

SMALL = replace(
    SETTINGS["minutes"].benches[0],
    items=60,
    trunk="resnet18,width=0.125,stage=2",
    size=32,
    patch_size=32,
    feature_size=32,
    attribute_dim=16,
    batch=12,
    flip=0.5,
    seconds=0.1,  # one epoch of every stage
)
CHOSEN = ("rpf", "rpf-ours")
RPF = Entry("rpf", "RPF", "rpf", "rpf", ours=False)


EVERY = ["embedding", "agreement", "both"]
EVERY += [name + training.MIRRORED for name in EVERY]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench") / "scores"


@pytest.fixture(scope="module")
def found(out: Path) -> scores.Scores:
    torch.set_num_threads(1)
    told: list[str] = []
    made = scores.run(out, Setting((SMALL,), 2, 2), methods=CHOSEN, say=told.append)
    names = itertools.product((*CHOSEN, "rivals"), range(2))
    assert told == [f"garments: {name}-{seed}" for name, seed in names]
    return made


@pytest.fixture
def data(found: scores.Scores, out: Path) -> Dataset:
    return placket.data.open(out / "garments" / "garments")


def test_the_table_is_complete(found: scores.Scores, out: Path) -> None:
    rows = found.data[0].rows
    titles = [row.title for row in rows]
    assert sorted(titles[:2]) == ["RPF", "RPF, our recipe"]
    rivals = ["16 x 16 pixels", "pooled frozen features", "ridge, 2 x 2 frozen map", "plain classifier"]
    assert titles[2:] == rivals
    assert [list(row.rankings) for row in rows] == [
        *[[*EVERY, "region weight"]] * 2,
        ["embedding"],
        ["embedding"],
        ["agreement"],
        EVERY,
    ]
    assert len({result.lists for row in rows for result in row.rankings.values()}) == 1
    for row in rows[:2]:
        assert list(row.valid) == EVERY
        assert min(row.seconds, row.trained_per_second, row.embedded_per_second, row.parameters) > 0
    text = found.tables()
    for said in (*titles, "chance", "neckline", "β by attribute", "p by random changes of sign", "2 seeds"):
        assert said in text
    assert (out / "scores.md").read_text() == found.tables("markdown") + "\n"
    assert "RPF, our recipe" in (out / "scores.html").read_text()
    drawn = "".join(ElementTree.parse(out / "garments.svg").getroot().itertext())
    for said in (*titles, "chance", "by class agreement"):
        assert said in drawn


def test_the_best_methods_are_compared_with_the_rivals_that_learned(found: scores.Scores) -> None:
    table = found.data[0]
    methods = {row.title: row for row in table.rows if not row.is_rival}
    pairs = list(dict.fromkeys((each.method, each.ranking) for each in table.differences))
    by_embedding, by_any = pairs[0], pairs[-1]
    assert by_embedding[1] == "embedding"
    assert methods[by_embedding[0]].valid["embedding"] == max(r.valid["embedding"] for r in methods.values())
    assert methods[by_any[0]].valid[by_any[1]] == max(x for r in methods.values() for x in r.valid.values())
    against = {(each.rival, each.rival_ranking) for each in table.differences}
    learned = {("plain classifier", name) for name in EVERY}
    assert against == learned | {("ridge, 2 x 2 frozen map", "agreement")}
    for each in table.differences:
        assert each.found.b == pytest.approx(methods[each.method].rankings[each.ranking].overall)


def test_json_gives_the_scores_again(found: scores.Scores, out: Path, tmp_path: Path) -> None:
    again = scores.Scores.load(out / "scores.json")
    assert again == found
    assert again.tables("latex") == found.tables("latex")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json: file must be scores saved as JSON, got"):
        scores.Scores.load(tmp_path / "other.json")


def test_a_stopped_run_goes_on_and_repeats_nothing(found: scores.Scores, out: Path) -> None:
    records = sorted((out / "garments").glob("*/record.json"))
    assert len(records) == 6
    times = {record: record.stat().st_mtime_ns for record in records}
    for name in ("rpf-1", "rivals-0"):  # stopped in the middle of these
        (out / "garments" / name / "record.json").unlink()
    told: list[str] = []
    again = scores.run(out, Setting((SMALL,), 2, 2), methods=CHOSEN, say=told.append)
    assert told == ["garments: rpf-1", "garments: rivals-0"]
    changed = {record for record in records if record.stat().st_mtime_ns != times[record]}
    assert {record.parent.name for record in changed} == {"rpf-1", "rivals-0"}
    # The same seeds give the same figures, also of what was trained twice.
    for row, other in zip(found.data[0].rows, again.data[0].rows, strict=True):
        assert (other.title, other.rankings, other.by_seed) == (row.title, row.rankings, row.by_seed)


def test_rankings_are_those_of_evaluate(found: scores.Scores, out: Path, data: Dataset) -> None:
    row = next(row for row in found.data[0].rows if row.title == "RPF")
    for seed in range(2):
        model = placket.load(out / "garments" / f"rpf-{seed}" / "best")
        options = {
            "embedding": {},
            "embedding" + training.MIRRORED: {"flip": True},
            "region weight": {"tune_region": "per attribute"},
        }
        for name, option in options.items():
            result = placket.evaluate(model, data, **option)
            assert row.by_seed[name][seed] == pytest.approx(result.overall, abs=1e-9)
        valid = placket.evaluate(model, data, "valid").overall
        record = training.Record.from_dict(_record(out / "garments" / f"rpf-{seed}"))
        assert record.valid["embedding"] == pytest.approx(valid, abs=1e-9)
    assert row.rankings["embedding"].overall == pytest.approx(np.mean(row.by_seed["embedding"]))
    assert row.by_seed["embedding"][0] != row.by_seed["embedding"][1]


def _record(folder: Path) -> dict[str, object]:
    (record,) = json.loads((folder / "record.json").read_text())
    return record


def test_other_settings_are_refused(found: scores.Scores, out: Path) -> None:
    with pytest.raises(FileExistsError, match="out must be a new folder or hold scores of the same"):
        scores.run(out, Setting((replace(SMALL, rate=0.5),), 1, 1), methods=["rpf"])
    with pytest.raises(ValueError, match=r"methods must be among .*rpf-ours, got 'rfp'"):
        scores.run(out, Setting((SMALL,), 1, 1), methods=["rfp"])
    with pytest.raises(ValueError, match="setting must be one of minutes, night, got 'year'"):
        scores.run(out, "year")
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        scores.run(out, seeds=0)
    with pytest.raises(ValueError, match="data must be left out with setting 'minutes', got photos"):
        scores.run(out, data="photos")


def test_photographs_take_part_where_they_are(
    found: scores.Scores, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PLACKET_DATA", raising=False)
    photographs = Setting((replace(SMALL, name="photographs", items=0, flip=0.0),), 1, 1)
    told: list[str] = []
    assert scores.run(tmp_path, photographs, say=told.append).data == []
    assert told == ["photographs: left out, no photographs; set PLACKET_DATA or give --data"]
    made = scores.run(tmp_path, photographs, data=data.root, methods=["rpf"])
    assert made.data[0].rows[0].title == "RPF"
    assert list(made.data[0].rows[-1].rankings) == EVERY[:3]  # without flips in training none in ranking
    assert "seeds" not in made.tables()


def test_command(found: scores.Scores, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(SETTINGS, "minutes", Setting((SMALL,), 3, 0))
    arguments = ["--out", str(tmp_path / "s"), "--seeds", "1", "--format", "markdown"]
    assert main(["scores", *arguments, "--methods", "rpf-ours", "--json", str(tmp_path / "copy.json")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("| garments | embedding |")
    assert said.err.splitlines() == ["garments: rpf-ours-0", "garments: rivals-0"]
    assert (tmp_path / "copy.json").read_text() == (tmp_path / "s" / "scores.json").read_text()


def test_every_method_has_an_entry() -> None:
    assert set(METHODS) <= set(TITLES)
    found = scores.entries(SMALL)
    assert {entry.method for entry in found if not entry.ours} == set(METHODS)
    assert {entry.method for entry in found if entry.ours} == set(METHODS) - {"modc"}
    assert len({entry.key for entry in found}) == len({entry.title for entry in found}) == len(found)


def test_settings_say_what_is_trained_how_often() -> None:
    bench = SETTINGS["night"].benches[1]
    entries = {entry.key: entry for entry in scores.entries(bench)}
    counts = {name: [setting.seeds_of(entries[key]) for key in CHOSEN] for name, setting in SETTINGS.items()}
    assert counts == {"minutes": [0, 1], "night": [1, 3]}
    modc = Entry("modc", "MODC", "modc", "modc", ours=False)  # stands by its paper's recipe alone
    assert SETTINGS["minutes"].seeds_of(modc) == 1


@pytest.mark.parametrize("entry", scores.entries(SMALL), ids=lambda entry: entry.key)
def test_every_entry_trains(entry: scores.Entry, data: Dataset) -> None:
    torch.set_num_threads(1)
    config = small_config(entry, SMALL, str(data.root), len(data.split("train")), seed=0)
    assert {stage.batch * (3 if stage.sampler == "triplets" else 1) for stage in config.stages} == {12}
    assert len(config.stages) == (len(placket.load_config(entry.recipe).stages) if config.model.patch else 1)
    assert training.fit_epochs(config, data, 1e-3) == [1] * len(config.stages)


def test_papers_rates_keep_their_ratio_and_trunks_have_their_own() -> None:
    bench = SETTINGS["night"].benches[1]
    stages = small_config(RPF, bench, "data", images=4500, seed=0, epochs=[3, 1]).stages
    assert [stage.epochs for stage in stages] == [3, 1]
    rates = stages[1].rates  # of the recipe: 1e-5, and 5.5e-5 for the patch branch
    assert rates["patch."] == bench.rate
    assert rates[""] == pytest.approx(bench.rate / 5.5)
    assert rates["patch.trunk."] == pytest.approx(0.2 * bench.rate)
    assert rates["region.trunk."] == pytest.approx(0.2 * bench.rate / 5.5)
    assert rates["region.trunk._blocks.4."] == 0
    assert not any(prefix.startswith("patch.") for prefix in stages[0].rates)
    ours = small_config(replace(RPF, recipe="lite", ours=True), bench, "data", images=4500, seed=0)
    recipe = placket.load_config("lite")
    assert [stage.rates for stage in ours.stages] == [stage.rates for stage in recipe.stages]
    assert ours.model.embedding_dim == recipe.model.embedding_dim


def test_class_probabilities_by_hand() -> None:
    """Two attributes of three values; of the first, value 2 has no image; the second has no label."""
    train = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]]), dim=1)
    train = train[:, None].expand(-1, 2, -1)
    labels = Labels.of([[(0, 0)], [(0, 0)], [(0, 1)]], (3, 3))
    asked = F.normalize(torch.tensor([[[2.0, 1.0]], [[-1.0, 0.5]]]), dim=2).expand(-1, 2, -1)
    centres = torch.stack([F.normalize(train[0, 0] + train[1, 0], dim=0), train[2, 0]])
    pairs = rankings.class_probabilities(train, labels, asked, asked[:1])
    assert len(pairs) == len(rankings._TEMPERATURES)
    for (valid, test), temperature in zip(pairs, rankings._TEMPERATURES, strict=True):
        logits = torch.exp(asked[:, 0] @ centres.T / temperature)
        torch.testing.assert_close(valid[:, 0, :2], logits / logits.sum(1, keepdim=True))
        assert not valid[:, 0, 2].any()
        assert not valid[:, 1].any()
        torch.testing.assert_close(test, valid[:1])


@pytest.fixture
def lists(tmp_path: Path) -> Dataset:
    """Lists of images that are not there: twelve queries among 48 candidates of two attributes."""
    counts = {"colour": 3, "cut": 4}
    values = {name: [str(i) for i in range(n)] for name, n in counts.items()}
    entry = {"ATTRIBUTES": list(counts), "ATTRIBUTES_NUM": counts, "VALUES": values}
    (tmp_path / "meta.json").write_text(json.dumps({tmp_path.name: entry}))
    random = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        rows = [f"{i} {a} {random.integers(n)}" for i in range(60) for a, n in enumerate(counts.values())]
        for stem, lines in (
            ("filenames", [f"{i}.jpg" for i in range(60)]),
            ("query", rows[:24]),
            ("candidate", rows[24:]),
        ):
            (tmp_path / f"{stem}_{split}.txt").write_text("\n".join(lines) + "\n")
    return placket.data.open(tmp_path)


def test_choices_are_the_best_on_valid(lists: Dataset) -> None:
    """Against every choice, ranked one by one, on embeddings that know something."""
    generator = torch.Generator().manual_seed(0)
    data, valid, test = lists, lists.split("valid"), lists.split("test")
    found = {}
    for part in (valid, test):
        rows = np.concatenate([part.queries, part.candidates])
        truth = torch.zeros(60, 2, 4)
        truth[tuple(torch.from_numpy(rows.T.astype(np.int64).copy()))] = 1
        noisy = [truth + noise * torch.randn(truth.shape, generator=generator) for noise in (0.8, 1.0, 0.9)]
        found[part.name] = F.normalize(noisy[0], dim=2), [x.softmax(dim=2) for x in noisy[1:]]
    pairs = list(zip(found["valid"][1], found["test"][1], strict=True))
    ranked = rankings.rank_both_ways(data, found["valid"][0], found["test"][0], pairs)

    def scored(part, rows: torch.Tensor) -> dict[str, float]:
        lists = part.queries, part.candidates
        return asfr_map_all(*lists, embed_from(rows), data.schema, similarity="dot").per_attribute

    def joined(name: str, which: int, weight: float) -> torch.Tensor:
        embeddings, given = found[name]
        return torch.cat([embeddings, weight**0.5 * given[which]], dim=2)

    alone = [(scored(valid, p), scored(test, q)) for p, q in pairs]
    every = itertools.product(range(2), rankings._WEIGHTS)
    both = [(scored(valid, joined("valid", *x)), scored(test, joined("test", *x))) for x in every]
    for name, tried in (("agreement", alone), ("both", both)):
        for attribute in data.schema.names:
            best = max(tried, key=lambda figures: figures[0][attribute])
            assert ranked[name].valid.per_attribute[attribute] == pytest.approx(best[0][attribute])
            assert ranked[name].test.per_attribute[attribute] == pytest.approx(best[1][attribute])
    assert len({figures[0]["colour"] for figures in both}) > 8  # the choice matters
