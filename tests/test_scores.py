"""The bench on a few garments: what its table holds, what it keeps, and what its figures are."""

from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import placket
from placket import scores
from placket.agreement import TEMPERATURES, Labelled, class_agreement
from placket.cli import main
from placket.data import Dataset
from placket.evaluate import classify_split, embed_split
from placket.models import METHODS
from placket.nn import AttributeNetwork
from placket.nn.network import assignment
from placket.schema import AttributeSchema
from placket.scores import training
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


def test_the_table_is_complete(found: scores.Scores, data: Dataset, out: Path) -> None:
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
        assert list(row.chosen) == [name for name in EVERY if not name.startswith("embedding")]
        for each in row.chosen.values():
            assert [tuple(chosen) for chosen in each] == [data.schema.names] * 2
    assert [row.chosen for row in rows[2:5]] == [{}] * 3
    assert {name for each in rows[5].chosen["agreement"] for name in each.values()} == {"classifier"}
    text = found.tables()
    assert "class agreement by what is best on valid for each attribute and seed, " in text
    kinds = {row.title: row.probabilities() for row in (*rows[:2], rows[5])}
    assert kinds["RPF"] == "class means"  # no loss of its paper's recipe learns classes
    assert set(re.sub(r" \(\d+ of \d+\)", "", kinds["RPF, our recipe"]).split(", ")) <= {
        "class means", "learned centres",
    }  # fmt: skip
    assert "; plain classifier: classifier" in text
    assert re.search(r"RPF(, our recipe)?: class means", text)
    for said in kinds.values():
        assert f": {said}" in text
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


def test_kinds_of_class_probabilities_are_counted(found: scores.Scores) -> None:
    row = found.data[0].rows[0]
    logits = [
        {"a": "class logits", "b": "class means, temperature 0.1"},
        {"a": "class logits", "b": "class logits"},
    ]
    assert (
        replace(row, chosen={"agreement": logits}).probabilities()
        == "class logits (3 of 4), class means (1 of 4)"
    )
    assert replace(row, chosen={}).probabilities() == ""


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
        for name in ("agreement", "both"):
            options |= {name: {"ranking": name}, name + training.MIRRORED: {"ranking": name, "flip": True}}
        for name, option in options.items():
            result = placket.evaluate(model, data, **option)
            assert row.by_seed[name][seed] == pytest.approx(result.overall, abs=1e-9)
            assert result.similarity in row.rankings[name].similarity.split(" / ")
            for attribute, chosen in row.chosen[name][seed].items() if name in row.chosen else ():
                assert f"{attribute}: {chosen}" in result.similarity
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
    with pytest.raises(ValueError, match=r"methods must be among .*rpf-ours, .*got 'rfp'"):
        scores.run(out, Setting((SMALL,), 1, 1), methods=["rfp"])
    with pytest.raises(ValueError, match="setting must be one of minutes, photographs, night, got 'year'"):
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
    with pytest.raises(ValueError, match="data must be photographs for setting 'custom', got none"):
        scores.run(tmp_path, photographs, say=told.append)
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
    networks = {name for name, method in METHODS.items() if issubclass(method, AttributeNetwork)}
    assert networks <= set(TITLES)
    found = scores.entries(SMALL)
    assert {entry.method for entry in found if not entry.ours} == networks
    assert {entry.method for entry in found if entry.ours} == networks
    assert len({entry.key for entry in found}) == len({entry.title for entry in found}) == len(found)


def test_settings_say_what_is_trained_how_often() -> None:
    bench = SETTINGS["photographs"].benches[0]
    entries = {entry.key: entry for entry in scores.entries(bench)}
    counts = {name: [setting.seeds_of(entries[key]) for key in CHOSEN] for name, setting in SETTINGS.items()}
    assert counts == {"minutes": [0, 1], "photographs": [0, 1], "night": [1, 3]}


@pytest.mark.parametrize("entry", scores.entries(SMALL), ids=lambda entry: entry.key)
def test_every_entry_trains(entry: scores.Entry, data: Dataset) -> None:
    torch.set_num_threads(1)
    config = small_config(entry, SMALL, data, seed=0)
    for stage in config.stages:
        assert stage.batch * stage.copies * (3 if stage.sampler == "triplets" else 1) == 12
    stages = placket.load_config(entry.recipe).stages
    kept = [stage for stage in stages if config.model.patch or "patch" not in stage.branches]
    assert [stage.name for stage in config.stages] == [stage.name for stage in kept]
    assert training.fit_epochs(config, data, 1e-3) == [1] * len(config.stages)


def test_batches_of_classes_can_be_of_every_attribute(data: Dataset) -> None:
    m3net = Entry("m3net", "M3-Net", "m3net", "m3net", ours=False)
    fewest = min(data.schema.value_counts)
    assert placket.load_config("m3net").stages[0].images_of_class == 4
    images = {}
    for batch in (8, 4 * fewest, 48):
        (stage,) = small_config(m3net, replace(SMALL, batch=batch), data, seed=0).stages
        assert stage.batch == batch
        assert stage.images_of_class * fewest >= batch
        images[batch] = stage.images_of_class
    assert images[8] == images[4 * fewest] == 4
    assert images[48] == 48 // fewest


def test_ramps_keep_their_share_of_the_epochs(data: Dataset) -> None:
    modc = Entry("modc", "MODC", "modc", "modc", ours=False)
    stages = small_config(modc, SMALL, data, seed=0, epochs=[5, 2, 2]).stages
    recipe = placket.load_config("modc").stages[2]
    assert (recipe.ramp_epochs["region_pseudo_label"], recipe.epochs) == (5, 20)
    assert stages[2].ramp_epochs == {"region_pseudo_label": 0.5, "region_consistency": 0.5}
    assert [stage.epochs for stage in stages] == [5, 2, 2]


SINGLE_LABEL = {"class_recognition": "class_cross_entropy"}


@pytest.mark.parametrize(("name", "stage"), [("modc", 1), ("m3net", 0)])
def test_our_recipe_has_a_methods_own_losses(name: str, stage: int, data: Dataset) -> None:
    entry = Entry(f"{name}-ours", name, name, "demo", ours=True)
    (ours,) = small_config(entry, SMALL, data, seed=0).stages
    own = placket.load_config(name).stages[stage].losses
    shared = ("triplet_region", "region_contrast")
    added = {SINGLE_LABEL.get(key, key): weight for key, weight in own.items() if key not in shared}
    assert ours.losses == {"region_classify": 1.0, **added}


@pytest.mark.parametrize("key", ["modc", "m3net", "modc-ours", "m3net-ours"])
def test_own_class_probabilities_take_part(
    key: str, found: scores.Scores, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MODC's centres and M3-Net's classifiers are tried beside class means, on both splits."""
    offered: list[tuple[Labelled, Labelled]] = []

    def spied(valid: Labelled, test: Labelled, schema: AttributeSchema, *, per_attribute: bool) -> object:
        offered.append((valid, test))
        return class_agreement(valid, test, schema, per_attribute=per_attribute)

    monkeypatch.setattr(training, "class_agreement", spied)
    entry = next(entry for entry in scores.entries(SMALL) if entry.key == key)
    counts = {"epochs": [1, 1, 1] if key == "modc" else [1]}
    config = small_config(entry, SMALL, data, seed=0, **counts)
    record = training.run_method(config, entry.title, SMALL, data, tmp_path / "run")
    assert list(record.rankings) == list(record.valid) == EVERY
    means = [f"class means, temperature {t:g}" for t in TEMPERATURES]
    learned = [f"learned centres, temperature {t:g}" for t in TEMPERATURES] if entry.ours else []
    own = ["class logits"]
    if entry.method == "modc":
        own = [f"centres of the training, temperature {t:g}" for t in TEMPERATURES]
    model = placket.load(tmp_path / "run" / "best")
    for flip, splits in zip((False, True), offered, strict=True):
        for split, name in zip(splits, ("valid", "test"), strict=True):
            offers = [*means, *own, *learned] if entry.method == "modc" else [*means, *learned, *own]
            assert list(split.probabilities) == offers
            images = np.arange(len(data.split(name)))
            if entry.method == "m3net":
                expected = classify_split(model, data.split(name), flip=flip)
            else:
                z = embed_split(model, data.split(name), flip=flip)
                expected = [assignment(z[:, a], model.centres(a), 0.02) for a in range(len(data.schema))]
            for attribute, p in enumerate(expected):
                assert torch.equal(torch.as_tensor(split.probabilities[own[0]](images, attribute)), p)
                assert p.shape == (len(images), data.schema.value_counts[attribute])


def test_class_means_are_of_the_training_images(found: scores.Scores, data: Dataset, out: Path) -> None:
    model = placket.load(out / "garments" / "rpf-0" / "best")
    train = data.split("train")
    z = embed_split(model, train)
    means = training._class_means(data, z)
    for attribute, count in enumerate(data.schema.value_counts):
        for value in range(count):
            own = [i for i in range(len(train)) if (attribute, value) in train.labels[i]]
            expected = F.normalize(z[own, attribute].sum(0), dim=0)
            torch.testing.assert_close(means[attribute][value], expected)


def test_papers_rates_keep_their_ratio_and_trunks_have_their_own(data: Dataset) -> None:
    bench = SETTINGS["photographs"].benches[0]
    stages = small_config(RPF, bench, data, seed=0, epochs=[3, 1]).stages
    assert [stage.epochs for stage in stages] == [3, 1]
    rates = stages[1].rates  # of the recipe: 1e-5, and 5.5e-5 for the patch branch
    assert rates["patch."] == bench.rate
    assert rates[""] == pytest.approx(bench.rate / 5.5)
    assert rates["patch.trunk."] == pytest.approx(0.2 * bench.rate)
    assert rates["region.trunk."] == pytest.approx(0.2 * bench.rate / 5.5)
    assert rates["region.trunk._blocks.4."] == 0
    assert not any(prefix.startswith("patch.") for prefix in stages[0].rates)
    ours = small_config(replace(RPF, recipe="lite", ours=True), bench, data, seed=0)
    recipe = placket.load_config("lite")
    assert [stage.rates for stage in ours.stages] == [stage.rates for stage in recipe.stages]
    assert ours.model.embedding_dim == recipe.model.embedding_dim
