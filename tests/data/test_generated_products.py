"""Generated products in two domains: layout, what is drawn from what, and how hard they are to find."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import placket.data
from placket.cli import main
from placket.data import ConsumerToShopDataset, Dataset, Split, garments, verify
from placket.data.garments import ATTRIBUTES, SPLITS, generate, generate_products

PRODUCTS, SIZE = 162, 64  # the last family has two


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("products") / "set"
    generate_products(root, products=PRODUCTS, size=SIZE, seed=3, workers=2)
    return placket.data.open(root)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def pixels(split: Split, image: int) -> NDArray[np.uint8]:
    with Image.open(split.root / split.filenames[image]) as photo:
        return np.asarray(photo)


def cloth(split: Split, image: int) -> NDArray[np.bool_]:
    """Where the garment is to be seen, [size, size]."""
    name = split.filenames[image].replace("img/", "masks/").replace(".jpg", ".png")
    with Image.open(split.root / name) as mask:
        return np.asarray(mask) == 255


def test_bytes_depend_on_the_seed_and_not_on_workers(tmp_path: Path) -> None:
    for name, seed, workers in (("one", 5, 1), ("two", 5, 2), ("three", 5, 3), ("other", 6, 1)):
        generate_products(tmp_path / name, products=40, size=32, seed=seed, workers=workers)
    one = contents(tmp_path / "one")
    assert contents(tmp_path / "two") == one
    assert contents(tmp_path / "three") == one
    other = contents(tmp_path / "other")
    assert not [name for name in one if name.endswith(".jpg") and one[name] == other[name]]


def test_photographs_do_not_depend_on_other_products(tmp_path: Path) -> None:
    """Of as many families, so that labels are the same."""
    for name, products in (("few", 37), ("more", 40)):
        generate_products(tmp_path / name, products=products, size=32, workers=1)
    few, more = contents(tmp_path / "few" / "img"), contents(tmp_path / "more" / "img")
    assert {name.split("/")[0] for name in more} - {name.split("/")[0] for name in few} == {
        "000037",
        "000038",
        "000039",
    }
    assert few == {name: more[name] for name in few}


def test_the_layout_is_consumer_to_shop(data: Dataset) -> None:
    assert isinstance(data, ConsumerToShopDataset)
    assert data.splits == SPLITS
    assert data.schema.names == ("clothes_type", *ATTRIBUTES)
    assert [a.values for a in data.schema.attributes[1:]] == [*ATTRIBUTES.values()]
    assert verify(data.root).ok
    # 41 families: 29, 4 and 8, the last of two products.
    assert [len(np.unique(data.split(name).identities)) for name in SPLITS] == [116, 16, 30]
    for name in SPLITS:
        split = data.split(name)
        domains, identities = split.domains, split.identities
        assert split.boxes is not None
        for product in np.unique(identities):
            own = identities == product
            assert (domains[own] == 0).sum() == 2
            assert (domains[own] == 1).sum() in (2, 3)
            assert len({tuple(split.labels[i][1:]) for i in np.flatnonzero(own)}) == 1
        assert split.query_images.tolist() == np.flatnonzero(domains == 1).tolist()
        assert split.gallery_images.tolist() == np.flatnonzero(domains == 0).tolist()
        assert (split.boxes >= 0).all()
        assert (split.boxes <= SIZE).all()
        for image in range(len(split)):
            assert pixels(split, image).shape == (SIZE, SIZE, 3)
            labels = dict(split.labels[image])
            hem = ATTRIBUTES["hem"][labels[1 + [*ATTRIBUTES].index("hem")]]
            expected = "full-body" if hem in ("knee", "ankle") else "upper-body"
            assert data.schema[0].values[labels[0]] == expected
    meta = json.loads((data.root / "meta.json").read_text())["garments"]
    assert meta["generator"] == {"seed": 3, "products": PRODUCTS, "size": SIZE}


def test_products_and_families_are_in_one_split(data: Dataset) -> None:
    assert isinstance(data, ConsumerToShopDataset)
    names = np.array([int(name.removeprefix("id_")) for name in data.identities])
    products = [set(names[np.unique(data.split(name).identities)].tolist()) for name in SPLITS]
    assert sorted(p for part in products for p in part) == list(range(PRODUCTS))
    families = [{p // 4 for p in part} for part in products]
    assert not families[0] & families[1] | families[1] & families[2] | families[0] & families[2]


def test_attributes_are_of_families_and_as_frequent_as_each_other(data: Dataset) -> None:
    for name in SPLITS:
        split = data.split(name)
        families: dict[int, set[tuple[tuple[int, int], ...]]] = {}
        for image in range(len(split)):
            product = int(split.filenames[image].split("/")[1])
            families.setdefault(product // 4, set()).add(tuple(split.labels[image][1:]))
        assert {len(labels) for labels in families.values()} == {1}
        rows = np.array([[v for _, v in next(iter(labels))] for labels in families.values()])
        for a, values in enumerate(ATTRIBUTES.values()):
            counts = np.bincount(rows[:, a], minlength=len(values))
            assert counts.max() - counts.min() <= 1


def test_the_garment_is_in_its_box_and_much_of_it_to_be_seen(data: Dataset) -> None:
    split = data.split("train")
    assert split.boxes is not None
    for image in range(len(split)):
        x0, y0, x1, y1 = split.boxes[image]
        mask = cloth(split, image)
        assert mask.mean() > 0.03
        # Sleeves and seams are a little wider than the body that the box is of.
        assert mask[y0:y1, x0:x1].sum() > 0.8 * mask.sum()


def test_grounds_differ_by_domain(data: Dataset) -> None:
    """A shop's ground is plain and bright, a street's is neither: no photograph is on the wrong side."""
    split = data.split("train")
    found: list[list[float]] = [[], []]
    for image, domain in enumerate(split.domains.tolist()):
        photo = pixels(split, image)
        # The upper corners: feet, arms and garment are elsewhere in a shop's photograph.
        corners = np.concatenate([photo[: SIZE // 8, : SIZE // 8], photo[: SIZE // 8, -SIZE // 8 :]])
        found[domain].append(float(corners.reshape(-1, 3).std(axis=0).mean()))
    shop, street = map(np.array, found)
    assert shop.max() < 8
    assert np.median(street) > 16
    assert (street > shop.max()).mean() > 0.8


def histogram(split: Split, image: int) -> NDArray[np.float64]:
    """Share of each of 6 x 6 x 6 colours in the cloth that is to be seen."""
    colours = pixels(split, image)[cloth(split, image)] // 43
    counts = np.bincount(colours @ np.array([36, 6, 1]), minlength=216)
    return counts / counts.sum()


def first_of_product(
    queries: list[NDArray], gallery: list[NDArray], asked: NDArray, offered: NDArray
) -> float:
    """How often the nearest of the gallery shows the product that is asked for."""
    x, y = np.stack(queries), np.stack(gallery)
    nearest = np.abs(x[:, None] - y[None]).sum(axis=2).argmin(axis=1)
    return float((offered[nearest] == asked).mean())


def test_colours_of_the_cloth_tell_a_product_in_the_shop_and_less_so_in_the_street(data: Dataset) -> None:
    split = data.split("train")
    found = [histogram(split, image) for image in range(len(split))]
    products, shop = split.identities, np.flatnonzero(split.domains == 0)
    first, second = shop[::2], shop[1::2]
    assert (products[first] == products[second]).all()

    def share(queries: NDArray[np.int64], gallery: NDArray[np.int64]) -> float:
        asked, offered = ([found[i] for i in images] for images in (queries, gallery))
        return first_of_product(asked, offered, products[queries], products[gallery])

    street = np.flatnonzero(split.domains == 1)
    chance = 1 / 116
    assert share(first, second) > 0.5
    assert 3 * chance < share(street, shop) < 0.5


def test_raw_pixels_do_not_find_a_product(data: Dataset) -> None:
    """16 x 16 pixels, from consumer to shop, of the whole picture and of the box."""
    split = data.split("train")
    assert split.boxes is not None
    street, shop = (np.flatnonzero(split.domains == domain) for domain in (1, 0))
    for crop in (False, True):
        rows = []
        for image in range(len(split)):
            photo = Image.fromarray(pixels(split, image))
            photo = photo.crop(tuple(split.boxes[image].tolist())) if crop else photo
            small = np.asarray(photo.resize((16, 16), Image.Resampling.BOX), dtype=np.float64).ravel()
            rows.append((small - small.mean()) / small.std())
        asked, offered = ([rows[i] for i in images] for images in (street, shop))
        assert first_of_product(asked, offered, split.identities[street], split.identities[shop]) < 0.2


def test_replaces_generated_garments_and_nothing_else(tmp_path: Path) -> None:
    generate(tmp_path / "set", items=50, size=32, workers=1)
    generate_products(tmp_path / "set", products=37, size=32, workers=1)
    assert not (tmp_path / "set" / "filenames_train.txt").exists()
    assert len(list((tmp_path / "set/img").iterdir())) == 37
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"generate_products: directory must be new, .*, got .*theirs"):
        generate_products(tmp_path / "theirs", products=40, size=32, workers=1)
    assert contents(tmp_path / "theirs") == {"note.txt": b"mine"}


@pytest.mark.parametrize("workers", [1, 2])
def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(garments, "_write_product_lists", fail)
    with pytest.raises(OSError, match="disk full"):
        generate_products(tmp_path / "set", products=40, size=32, workers=workers)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"products": 36}, "generate_products: products must be at least 37, got 36"),
        ({"size": 16}, "generate_products: size must be from 32 to 4096 pixels, got 16"),
        ({"seed": -1}, r"generate_products: seed must be from 0 to 2\*\*64 - 1, got -1"),
        ({"workers": 0}, "generate_products: workers must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_products(tmp_path / "set", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data", "generate", str(tmp_path / "set"), "--products", "40", "--size", "32", "--seed", "7"]
    assert main(arguments) == 0
    generate_products(tmp_path / "other", products=40, size=32, seed=7)
    assert contents(tmp_path / "set") == contents(tmp_path / "other")
    with pytest.raises(SystemExit):
        main([*arguments, "--items", "50"])
    assert "not allowed with argument" in capsys.readouterr().err
