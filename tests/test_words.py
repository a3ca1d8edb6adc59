"""Models with words on whole data sets: recognition, composed queries, and a composition that is trained."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import placket
from placket.cli import main
from placket.composed import FitConfig
from placket.data import Dataset, Loader, Preprocess, Split, garments
from placket.data.compositions import joined_captions
from placket.evaluate import classify_split
from placket.nn import Composition, RafClip
from placket.protocols import (
    composed_recall,
    fashioniq_original,
    fashioniq_val,
    recognition,
    recognition_targets,
)
from placket.text import Tokenizer
from placket.words import train_composition

TRUNK = "resnet18,width=0.25,stage=2,embedding_dim=32"
TEXT = "clip_text,width=32,depth=1,heads=2,embedding_dim=32,context=40,vocabulary={}"
COLOURS = {"red": (200, 30, 30), "green": (30, 170, 40), "blue": (30, 40, 200), "white": (240, 240, 240)}
SMALL = "agcn,layers=1,heads=2,hidden=32,dropout=0"


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Products with a grey stripe of their own, each in four colours, and composed queries between them."""
    root = tmp_path_factory.mktemp("catalogue")
    rows = []
    for (number, split), (name, colour) in product(
        enumerate(["train"] * 12 + ["valid"] * 4 + ["test"] * 4), COLOURS.items()
    ):
        picture = np.full((48, 48, 3), colour, dtype=np.uint8)
        picture[:, 2 * number : 2 * number + 6] = 10 * number
        Image.fromarray(picture).save(root / f"{number}-{name}.png")
        rows.append([f"{number}-{name}.png", name, str(number), split])
    with (root / "articles.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "colour", "product", "split"], *rows])
    (root / "articles.yaml").write_text(
        "table: articles.csv\nimage: '{file}'\nattributes: {colour: colour}\nidentity: product\n"
        "split: split\ncompositions: {attribute: colour}\n"
    )
    return placket.data.open(root / "articles.yaml")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("garments") / "set"
    garments.generate(root, items=60, size=64)
    return placket.data.open(root)


def make(data: Dataset, **options: object) -> RafClip:
    tokenizer = Tokenizer.from_bytes(b"a merge a line\nt h</w>\na r\n", clean="basic")
    settings = {"schema": data.schema, "trunk": TRUNK, "preprocess": {"size": 48, "fit": "pad"}, **options}
    model = placket.create_model(
        "raf_clip",
        text=TEXT.format(len(tokenizer)),
        vocabulary=tokenizer,
        generator=torch.Generator().manual_seed(0),
        **settings,
    )
    assert isinstance(model, RafClip)
    return model.eval()


def all_images(model: RafClip, split: Split) -> Tensor:
    settings = Preprocess(**model.preprocess)
    loader = Loader(split, batch=len(split), shuffle=False, drop_last=False, preprocess=settings)
    return next(iter(loader)).images


@pytest.mark.parametrize("views", ["crop", "segmented", "both"])
def test_recognition_of_regions_by_words(views: str, drawn: Dataset) -> None:
    model = make(drawn, views=views)
    scores, targets = [], []
    for name in ("test", "valid"):
        split = drawn.region_split(name)
        assert split is not None
        parts = []
        shown = Loader(
            split,
            batch=7,
            shuffle=False,
            drop_last=False,
            preprocess=Preprocess(**model.preprocess),
            views=views,
        )
        for batch in shown:
            pair = [batch.images] if views != "both" else [batch.images, batch.segmented]
            with torch.no_grad():
                cosines = [model.encode_image(view, normalize=True) @ model.words().T for view in pair]
            parts.append(torch.stack(cosines).mean(0))
        scores.append(torch.cat(parts))
        targets.append(recognition_targets(split.labels))
    expected = recognition(scores[0], targets[0], scores[1], targets[1], drawn.schema)
    found = placket.evaluate(model, drawn, "test", "recognition/v1", regions=True, batch=16)
    assert found.lists == expected.lists
    for name, metric in expected.metrics.items():
        # Batches of another size round otherwise, which may change a place among hundreds.
        assert found.metrics[name].overall == pytest.approx(metric.overall, abs=0.5), name


@torch.no_grad()
def test_value_maps_are_parts_of_the_lead_of_a_value(drawn: Dataset) -> None:
    model = make(drawn)
    images = torch.randn(3, 3, 48, 64)
    maps = model.value_maps(images)
    assert maps.shape == (3, sum(drawn.schema.value_counts), 6, 8)
    cosines = model.score_values(images).split(drawn.schema.value_counts, 1)
    leads = []
    for own in cosines:
        others = (own.sum(1, keepdim=True) - own) / (own.shape[1] - 1)
        leads.append(own - others)
    length = model.encode_image(images).norm(dim=1, keepdim=True)
    # A trunk's embedding is the mean of its positions'.
    torch.testing.assert_close(maps.mean((2, 3)), torch.cat(leads, 1) * length, atol=1e-5, rtol=1e-4)
    only = make(drawn, schema=placket.AttributeSchema.of({"sleeve": ["long"]}))
    expected = only.image_tokens(images).tokens[:, 1:] @ only.words()[0]
    torch.testing.assert_close(only.value_maps(images).flatten(1), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "tower", [TRUNK, "clip_vit,width=32,depth=1,heads=2,patch=16,image=48,embedding_dim=32"]
)
@torch.no_grad()
def test_attention_is_what_speaks_for_the_likeliest_value(tower: str, drawn: Dataset) -> None:
    model = make(drawn, trunk=tower)
    images = torch.randn(2, 3, 48, 48)
    asked = [3, "sleeve"]
    found = model.attend(images, asked)
    assert torch.equal(found.embedding, model.encode(images, asked))
    torch.testing.assert_close(found.attention.sum((2, 3)), torch.ones(2, 2))
    ends = np.cumsum(drawn.schema.value_counts)
    for k, attribute in enumerate(drawn.schema.indices(asked)):
        first = int(ends[attribute]) - drawn.schema.value_counts[attribute]
        for row, estimate in enumerate(model.class_probabilities(images, asked)[k]):
            own = model.value_maps(images)[row, first + int(estimate.argmax())].clamp_min(0)
            expected = own / own.sum() if own.sum() > 0 else torch.full_like(own, 1 / own.numel())
            torch.testing.assert_close(found.attention[row, k], expected)


@torch.no_grad()
def test_attention_is_even_where_nothing_speaks_for_a_value(drawn: Dataset) -> None:
    model = make(drawn)
    next(p for name, p in model.named_parameters() if name.endswith("head.proj.weight")).zero_()
    found = model.attend(torch.randn(1, 3, 48, 48), ["hem"]).attention
    torch.testing.assert_close(found, torch.full_like(found, 1 / 36))


def test_explaining_a_hit_by_words(
    drawn: Dataset, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def printed(*arguments: object) -> list[dict[str, Any]]:
        assert main([*map(str, arguments), "--json"]) == 0
        rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        return rows

    model, split = make(drawn), drawn.split("test")
    model.save(tmp_path / "model")
    build = ["index", "build", tmp_path / "model", drawn.root, "--split", "test", "--out", tmp_path / "index"]
    assert main([*map(str, build)]) == 0
    capsys.readouterr()
    first, second = list(split.records)[:2]
    asked = [split.paths[0], "--attribute", "hem", "--box", ",".join(map(str, first.box or ()))]
    hits = printed("search", tmp_path / "index", *asked, "-k", len(split))
    page = tmp_path / "page.html"
    hit = ["--hit", tmp_path / "index", second.filename]
    (row,) = printed("explain", tmp_path / "model", *asked, *hit, "--out", page)
    assert row["cosine"] == pytest.approx(
        next(found["score"] for found in hits if found["id"] == second.filename), abs=1e-5
    )
    with torch.no_grad():
        estimates = model.class_probabilities(all_images(model, split)[:2], ["hem"])[0]
    known = next(found["metadata"] for found in hits if found["id"] == second.filename)
    assert known["predicted"]["hem"] == row["value2"]
    assert known["probability"]["hem"] == pytest.approx(row["probability2"], abs=1e-4)
    for estimate, ending in zip(estimates, ("", "2"), strict=True):
        assert row["value" + ending] == drawn.schema["hem"].values[int(estimate.argmax())]
        assert row["probability" + ending] == pytest.approx(float(estimate.max()), abs=1e-5)
    assert f"{row['value']} ({row['probability']:.2f}) and {row['value2']}" in page.read_text()


def test_recognition_by_class_logits(drawn: Dataset) -> None:
    model = placket.create_model("m3net", schema=drawn.schema, trunk=TRUNK.rpartition(",")[0]).eval()
    found = placket.evaluate(model, drawn, "test", "recognition/v1")
    targets = [recognition_targets(drawn.split(name).labels) for name in ("test", "valid")]
    scores = [torch.cat(classify_split(model, drawn.split(name)), 1) for name in ("test", "valid")]
    expected = recognition(scores[0], targets[0], scores[1], targets[1], drawn.schema)
    assert found.to_dict() == expected.to_dict()


@pytest.mark.parametrize("name", [None, "tirg", SMALL])
def test_composed_recall_is_of_the_models_own_queries(name: str | None, catalogue: Dataset) -> None:
    model = make(catalogue)
    if name is not None:
        model.with_composition(Composition(name, 32, torch.Generator().manual_seed(1)))
        for parameter in model.composition.parameters():  # gates that start at zero would hide the tokens
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(2))
    split, queries = catalogue.split("test"), catalogue.compositions("test")
    assert queries is not None
    images = all_images(model, split)
    with torch.no_grad():
        gallery = model.encode_image(images, normalize=True)
        asked = model.compose(
            images[torch.from_numpy(queries.reference.astype(np.int64))], joined_captions(queries)
        )
    expected = composed_recall(queries, split, asked.query, gallery, reference="removed")
    # Queries of one image lie in two batches of five.
    found = placket.evaluate(model, catalogue, "test", "composed-recall/v1", reference="removed", batch=5)
    assert found.to_dict() == expected.to_dict()


def test_fashioniq_by_either_gallery(tmp_path: Path) -> None:
    """Categories with images that no query names: the galleries of the two protocols differ."""
    random = np.random.default_rng(0)
    for folder in ("images", "image_splits", "captions"):
        (tmp_path / folder).mkdir()
    for category in ("dress", "shirt", "toptee"):
        names = [f"{category}{i}" for i in range(30)]
        for name in names:
            picture = random.integers(0, 256, (48, 48, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "images" / f"{name}.png")
        queries = [
            {"candidate": names[i], "target": names[i + 1], "captions": ["is red", "and longer"]}
            for i in range(0, 16, 2)
        ]
        (tmp_path / "image_splits" / f"split.{category}.val.json").write_text(json.dumps(names))
        (tmp_path / "captions" / f"cap.{category}.val.json").write_text(json.dumps(queries))
    data = placket.data.open(tmp_path)
    model, split, queries = make(data), data.split("valid"), data.compositions("valid")
    assert queries is not None
    images = all_images(model, split)
    with torch.no_grad():
        gallery = model.encode_image(images, normalize=True)
        reference = images[torch.from_numpy(queries.reference.astype(np.int64))]
        asked = model.compose(reference, joined_captions(queries)).query
    sizes = {}
    for protocol in (fashioniq_original, fashioniq_val):
        name = protocol.__name__.replace("_", "-") + "/v1"
        found = placket.evaluate(model, data, "valid", name, batch=len(split))
        assert found.to_dict() == protocol(queries, split, asked, gallery).to_dict()
        sizes[name] = found.candidates
    assert sizes == {
        "fashioniq-original/v1": dict.fromkeys(("dress", "shirt", "toptee"), 30),
        "fashioniq-val/v1": dict.fromkeys(("dress", "shirt", "toptee"), 16),
    }


def test_images_that_are_missing_leave_queries_and_gallery(catalogue: Dataset, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(catalogue.root, tmp_path / "part")
    (tmp_path / "part" / "16-red.png").unlink()
    data = placket.data.open(tmp_path / "part" / "articles.yaml")
    model = make(catalogue)
    with pytest.raises(RuntimeError, match=r"16-red\.png"):
        placket.evaluate(model, data, "test", "composed-recall/v1")
    found = placket.evaluate(model, data, "test", "composed-recall/v1", allow_missing=True)
    assert found.protocol == "composed-recall/v1 subset"
    assert found.missing == 1
    assert found.queries == {"all": 3 * 12 + 6}
    assert placket.evaluate(model, data, "test", "recognition/v1", allow_missing=True).missing == 1


@pytest.mark.parametrize("name", ["combiner,projection=32,hidden=32", SMALL])
def test_a_trained_composition_finds_more_than_the_sum(name: str, catalogue: Dataset, tmp_path: Path) -> None:
    model = make(catalogue)
    before = placket.evaluate(model, catalogue, "train", "composed-recall/v1").overall
    losses: list[float] = []
    train_composition(
        model,
        catalogue,
        Composition(name, 32, torch.Generator().manual_seed(0)),
        FitConfig(epochs=40, batch=48, lr=1e-2, scale=20.0),
        path=tmp_path / "images.features",
        report=lambda epoch, loss: losses.append(loss),
    )
    after = placket.evaluate(model, catalogue, "train", "composed-recall/v1").overall
    assert losses[-1] < losses[0]
    assert after > before + 20
    model.save(tmp_path / "composed")
    again = placket.evaluate(placket.load(tmp_path / "composed"), catalogue, "train", "composed-recall/v1")
    assert again.overall == after


def test_features_in_a_file_give_the_same_training(catalogue: Dataset, tmp_path: Path) -> None:
    trained = []
    for path in (None, tmp_path / "images.features", tmp_path / "images.features"):
        model = make(catalogue)
        composition = Composition(SMALL, 32, torch.Generator().manual_seed(0))
        train_composition(model, catalogue, composition, FitConfig(epochs=2, batch=48), path=path)
        trained.append(composition.state_dict())
    for name, tensor in trained[0].items():
        assert torch.equal(trained[1][name], tensor), name
        assert torch.equal(trained[2][name], tensor), name
    other = make(catalogue)
    with torch.no_grad():
        next(other.visual.parameters()).mul_(2)
    with pytest.raises(ValueError, match=r"images\.features' must be .*; embed again"):
        train_composition(other, catalogue, Composition(SMALL, 32), path=tmp_path / "images.features")


def test_the_command_line_trains_measures_and_searches(
    catalogue: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(catalogue).save(tmp_path / "towers")
    place, out = str(catalogue.root / "articles.yaml"), str(tmp_path / "composed")
    settings = ["--composition", SMALL, "--epochs", "3", "--batch", "24", "--lr", "1e-3"]
    assert main(["compose", str(tmp_path / "towers"), place, "--out", out, *settings]) == 0
    told = capsys.readouterr()
    assert told.out == f"{out}\n"
    assert told.err.splitlines()[-1].startswith("epoch 3 of 3: loss ")

    model = make(catalogue)
    train_composition(
        model,
        catalogue,
        Composition(SMALL, 32, torch.Generator().manual_seed(0)),
        FitConfig(epochs=3, batch=24, lr=1e-3),
    )
    expected = placket.evaluate(model, catalogue, "test", "composed-recall/v1", reference="removed")
    asked = ["--protocol", "composed-recall/v1", "--reference", "removed", "--json"]
    assert main(["evaluate", out, place, *asked]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(expected.to_dict()))

    assert main(["index", "build", out, place, "--out", str(tmp_path / "index")]) == 0
    capsys.readouterr()
    photo, text = catalogue.root / "16-red.png", "replace red with blue"
    assert main(["search", str(tmp_path / "index"), str(photo), "--text", text, "-k", "16", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)
    queries, split = catalogue.compositions("test"), catalogue.split("test")
    assert queries is not None
    row = list(split.filenames).index("16-red.png")
    picture = next(
        iter(Loader(split, batch=16, shuffle=False, preprocess=Preprocess(**model.preprocess)))
    ).images
    with torch.no_grad():
        gallery = F.normalize(model.encode_image(picture), dim=1)
        cosines = gallery @ model.compose(picture[row : row + 1], [text]).query[0]
    found = {hit["id"]: hit["score"] for hit in hits}
    assert found == pytest.approx(dict(zip(split.filenames, cosines.tolist(), strict=True)), abs=1e-4)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda drawn, catalogue: placket.evaluate(make(drawn), drawn, "test", "composed-recall/v1"),
            "evaluate: data must have composed queries, got 'test' of",
        ),
        (
            lambda drawn, catalogue: placket.evaluate(
                make(catalogue), catalogue, "test", "recognition/v1", regions=True
            ),
            "evaluate: data must have regions, got",
        ),
        (
            lambda drawn, catalogue: placket.evaluate(
                make(catalogue), catalogue, "test", "recognition/v1", flip=True
            ),
            "evaluate: flip must be False with recognition/v1, got True",
        ),
        (
            lambda drawn, catalogue: train_composition(make(catalogue), catalogue, Composition("agcn", 64)),
            "raf_clip: composition must be of 32 dimensions, got 64",
        ),
        (
            lambda drawn, catalogue: train_composition(make(catalogue), catalogue, Composition("sum", 32)),
            "composition must have parameters to train, got none",
        ),
    ],
)
def test_what_is_refused(
    act: Callable[[Dataset, Dataset], object], message: str, drawn: Dataset, catalogue: Dataset
) -> None:
    with pytest.raises(ValueError, match=message):
        act(drawn, catalogue)
