"""Models whose spaces are not their attributes; where the garment is, groups of hits, mirror images."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import placket
from placket import models
from placket.cli import main
from placket.data import Dataset, Split
from placket.index import AttributeIndex, add_images, build, search_image
from placket.nn import Modc

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from product_model import Products
from small_training import COLOURS, PLACES, TRUNK, draw_all


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("products") / "drawn"
    root.mkdir()
    draw_all(root)
    return placket.data.open(root)


@pytest.fixture(scope="module")
def split(data: Dataset) -> Split:
    """Eighteen photos of six products; of two photos it is not known what they show."""
    products = np.arange(18) % 6
    products[[4, 13]] = -1
    return dataclasses.replace(data.split("valid"), identities=products)


@pytest.fixture(scope="module")
def index(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index") / "products"
    build(Products(), split, folder).close()
    return folder


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the model be loaded by its name."""
    monkeypatch.setitem(models.METHODS, "products", Products)


def test_spaces_are_the_models_own(split: Split, index: Path) -> None:
    model = Products()
    assert model.default_spaces == ("product",)
    every = placket.embed_split(model, split)
    assert every.shape == (18, 1, 12)
    assert torch.equal(every, placket.embed_split(model, split, attributes=["product"]))
    one = placket.embed_image(model, split.paths[5])
    torch.testing.assert_close(one, every[5], rtol=0, atol=1e-6)
    with AttributeIndex.load(index, read_only=True) as opened:
        assert opened.spaces == {"product": 12}
        hits = search_image(opened, split.paths[5], k=18, model=model)
        expected = (every[:, 0] @ every[5, 0]).tolist()
        found = {hit.id: hit.score for hit in hits}
        assert found == pytest.approx(dict(zip(split.filenames, expected, strict=True)), abs=1e-5)
        assert search_image(opened, split.paths[5], {"product": 1.0}, k=18, model=model) == hits
    for call in (
        lambda: placket.embed_split(model, split, attributes=["colour"]),
        lambda: search_image(opened, split.paths[5], ["colour"], model=model),
    ):
        with pytest.raises(ValueError, match="products: space must be one of product, got 'colour'"):
            call()
    with pytest.raises(ValueError, match="products: space must be an id from 0 to 0, got 1"):
        placket.embed_image(model, split.paths[5], [1])


def test_metadata_hold_product_and_predictions(split: Split, index: Path) -> None:
    with AttributeIndex.load(index, read_only=True) as opened:
        items = [opened.get(name).metadata for name in split.filenames]
        for i, metadata in enumerate(items):
            assert metadata.get("product") == (None if i in (4, 13) else i % 6)
            # The model is right of what is drawn, and says nothing of "fit".
            assert metadata["predicted"] == {"colour": COLOURS[i % 3], "place": PLACES[i // 3 % 2]}
            assert metadata["probability"].keys() == {"colour", "place"}
            assert all(0.5 < share <= 1 for share in metadata["probability"].values())
        some = search_image(
            opened,
            split.paths[0],
            k=18,
            where="predicted.colour = 'red' and probability.place > 0.5",
            model=Products(),
        )
        assert {hit.id for hit in some} == {split.filenames[i] for i in range(0, 18, 3)}


@pytest.mark.parametrize("flip", [False, True])
def test_predictions_are_class_probabilities(flip: bool, data: Dataset, tmp_path: Path) -> None:
    model = placket.create_model("modc", schema=data.schema, trunk=TRUNK, preprocess={"size": 48}).eval()
    assert isinstance(model, Modc)
    model.class_centres[:3] = torch.nn.functional.normalize(torch.randn(3, model.embedding_dim), dim=1)
    split = data.split("valid")
    batch = next(iter(placket.data.Loader(split, batch=18, shuffle=False, preprocess=_inputs(model))))
    with torch.no_grad():
        colour, _ = model.class_probabilities(batch.images, ["colour", "place"])
        if flip:  # 48 pixels of 48, which a mirror changes no place of
            both = [model.encode(images, ["colour"]) for images in (batch.images, batch.images.flip(3))]
            colour = model.probabilities_of(sum(both).squeeze(1), "colour")
    with build(model, split, tmp_path / "a", flip=flip) as index:
        for i, name in enumerate(split.filenames):
            metadata = index.get(name).metadata
            # Nothing is known of places, whose centres are all zero.
            assert metadata["predicted"] == {"colour": COLOURS[int(colour[i].argmax())]}
            assert metadata["probability"]["colour"] == pytest.approx(colour[i].max().item(), abs=2e-3)


def _inputs(model: placket.nn.Model) -> placket.data.Preprocess:
    return placket.data.Preprocess(**model.preprocess)


@pytest.mark.parametrize("k", [1, 2, 5, 8, 30])
@pytest.mark.parametrize("name", ["product", "predicted.colour", "labels.place"])
def test_groups_are_those_of_the_whole_ranking(k: int, name: str, split: Split, index: Path) -> None:
    with AttributeIndex.load(index, read_only=True) as opened:
        whole = search_image(opened, split.paths[2], k=18, model=Products())
        first: dict[object, str] = {}
        for hit in whole:
            value = hit.metadata
            for key in name.split("."):
                value = value.get(key)
            first.setdefault((hit.id,) if value is None else str(value), hit.id)
        found = search_image(opened, split.paths[2], k=k, group_by=name, model=Products())
        assert [hit.id for hit in found] == list(first.values())[:k]
        assert found == [hit for hit in whole if hit.id in list(first.values())[:k]]


def test_groups_of_several_queries_and_of_none(split: Split, index: Path) -> None:
    rows = placket.embed_split(Products(), split)[:3, 0].numpy()
    with AttributeIndex.load(index, read_only=True) as opened:
        every = opened.search({"product": rows}, k=4, group_by="product")
        assert every == [opened.search({"product": row}, k=4, group_by="product") for row in rows]
        # Photos of unknown products are found first, and each stands for itself.
        unknown = opened.search({"product": rows[0]}, k=2, where="product is null", group_by="product")
        assert len(unknown) == 2
        assert opened.search({"product": rows[0]}, where="product = 99", group_by="product") == []
        for wrong in ("prodcut", "product.name"):
            with pytest.raises(
                ValueError, match=f"group_by must be in the metadata of an item, got '{wrong}'"
            ):
                opened.search({"product": rows[0]}, group_by=wrong)
        with pytest.raises(ValueError, match=r"where: expression must have '\.' or the end at position 9"):
            opened.search({"product": rows[0]}, group_by="product = 3")


def test_boxes(split: Split, tmp_path: Path) -> None:
    model = Products(fit="pad", box_margin=0.1)
    boxes = np.tile([3, 4, 44, 27], (18, 1))
    boxes[7:] = -9, 30, 21, 90
    boxed = dataclasses.replace(split, boxes=boxes)
    with build(model, boxed, tmp_path / "a") as index:
        for image in (0, 11):
            own = search_image(index, split.paths[image], box=boxes[image].tolist(), model=model)[0]
            assert (own.id, own.score) == (split.filenames[image], pytest.approx(1, abs=1e-5))
    whole = placket.embed_image(model, split.paths[0])
    assert not torch.equal(whole, placket.embed_image(model, split.paths[0], box=(0, 0, 48, 20)))
    # The margin is a share of the box as it is given; what lies outside the picture is cut.
    assert torch.equal(whole, placket.embed_image(model, split.paths[0], box=(-9, -9, 99, 99)))
    for box in ((48, 0, 60, 20), (0, 56, 20, 70), (-20, 0, 0, 20), (10, 10, 10, 20), (20, 10, 10, 20)):
        for flip in (False, True):
            with pytest.raises(ValueError, match=r"box must overlap the image of 48 x 56 pixels, got \["):
                placket.embed_image(model, split.paths[0], box=box, flip=flip)


def test_a_grey_photograph_is_three_equal_channels(split: Split, tmp_path: Path) -> None:
    with Image.open(split.paths[3]) as opened:
        grey = opened.convert("L")
    grey.save(tmp_path / "grey.png")
    grey.convert("RGB").save(tmp_path / "three.png")
    one, three = (placket.embed_image(Products(), tmp_path / f"{name}.png") for name in ("grey", "three"))
    assert torch.equal(one, three)


@pytest.mark.parametrize(
    "preprocess",
    [
        {},
        {"fit": "pad", "box_margin": 0.1},
        {"fit": "target_pad", "target_ratio": 1.1},
        {"fit": "squash", "box_margin": 0.1},
    ],
    ids=str,
)
def test_an_index_of_mirror_images_too(preprocess: dict[str, object], split: Split, tmp_path: Path) -> None:
    model = Products(**preprocess)
    # Odd sides, so that the place of the odd pixel of a margin tells.
    boxed = dataclasses.replace(split, boxes=np.tile([1, 2, 40, 47], (18, 1)))
    expected = placket.embed_split(model, boxed, flip=True)
    box, image = [1, 2, 40, 47], split.paths[6]
    with build(model, boxed, tmp_path / "a", flip=True, images=range(9)) as index:
        assert index.info()["flip"]
        assert add_images(index, boxed, model=model) == 9
        for i in (6, 15):
            stored = index.get(split.filenames[i]).vectors["product"]
            np.testing.assert_allclose(stored, expected[i, 0], atol=1e-6)
        # Pillow's resizing of a mirrored picture may round a level elsewhere.
        own = search_image(index, image, box=box, model=model)
        assert own[0].score == pytest.approx(1, abs=1e-4)
        assert search_image(index, image, box=box, flip=True, model=model) == own
        plain = search_image(index, image, box=box, flip=False, k=18, model=model)
        assert next(hit.score for hit in plain if hit.id == own[0].id) < own[0].score - 1e-3
    with pytest.raises(ValueError, match=r"build: flip must be True as in the index .*, got False"):
        build(model, boxed, tmp_path / "a")
    with build(model, boxed, tmp_path / "b", images=[0]) as index:
        assert not index.info()["flip"]
    mirrored = placket.embed_image(model, image, box=box, flip=True)
    torch.testing.assert_close(mirrored, expected[6], rtol=0, atol=1e-3)


def test_commands(
    split: Split, index: Path, known: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, page = split.paths[2], tmp_path / "page.html"

    def printed(*arguments: str) -> list[dict[str, object]]:
        capsys.readouterr()
        assert main(["search", str(index), image, "--json", *arguments]) == 0
        found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
        return found

    def failure(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["search", str(index), *arguments]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    groups = printed("--group", "product", "-k", "5", "--html", str(page))
    products = [hit["metadata"].get("product") for hit in groups]  # type: ignore[attr-defined]
    known_ones = [product for product in products if product is not None]
    assert len(groups) == 5
    assert len(set(known_ones)) == len(known_ones)
    assert groups[0]["metadata"]["predicted"] == {"colour": "blue", "place": "left"}  # type: ignore[index]
    assert "Alike in product" in page.read_text()
    assert "product 2 · colour blue " in page.read_text()
    capsys.readouterr()
    assert main(["search", str(index), image, "-k", "1"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("  1.0000  img/valid002.jpg  product 2  colour blue ")
    assert ", place left " in line
    boxed = printed("--box", "0,0,48,20", "--flip")
    assert boxed[0]["score"] < 0.999  # type: ignore[operator]
    assert "box must overlap the image of 48 x 56 pixels, got [50, 0, 60, 9]" in failure(
        image, "--box", "50,0,60,9"
    )
    assert "--box must be X0,Y0,X1,Y1 in whole pixels, got '1,2,3'" in failure(image, "--box", "1,2,3")
    assert "image must be one with --box or --mask, got the folder" in failure(
        str(Path(image).parent), "--box", "0,0,9,9"
    )
    Image.fromarray(np.ones((56, 48), np.uint8)).save(tmp_path / "mask.png")
    assert "mask needs a model of segmented regions, views 'segmented' or 'both', got products" in failure(
        image, "--mask", str(tmp_path / "mask.png")
    )
    assert "--mask must be FILE or FILE=VALUE, a value from 0 to 255, got " in failure(
        image, "--mask", f"{tmp_path / 'mask.png'}=300"
    )
    assert "without --attribute, --html, --box, --mask and --flip, got no image" in failure(
        "--text", "red", "--flip"
    )
    assert "group_by must be in the metadata of an item, got 'price'" in failure(image, "--group", "price")
