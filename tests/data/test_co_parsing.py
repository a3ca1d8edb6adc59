"""Clothing Co-Parsing: its layout, its regions, and what verify says of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from small_layouts import draw

import placket.data
from fuzz.damaged_lists import damage, read_all
from placket.data import CoParsingDataset, DatasetError, Loader, Preprocess, Split, verify

NAMES = ["null", "bag", "dress", "hair", "skin", "tie"]
SPLITS = {"0003": "train", "0001": "train", "0007": "valid", "0004": "test", "0009": "train"}

# Of 30 x 40 pixels: name, x0, y0, x1, y1, one over the other.
PARTS: dict[str, list[tuple[int, int, int, int, int]]] = {
    "0001": [
        (4, 10, 0, 20, 10),
        (3, 12, 0, 18, 3),
        (2, 5, 10, 25, 38),
        (5, 14, 10, 16, 20),
        (1, 0, 20, 6, 30),
    ],
    "0003": [(2, 5, 5, 25, 30), (1, 0, 5, 4, 8), (1, 26, 30, 30, 39)],  # a bag in two pieces
    "0004": [(2, 1, 2, 20, 30), (1, 20, 30, 29, 40)],
    "0007": [(2, 8, 8, 20, 30), (5, 0, 0, 1, 1)],  # a tie of one pixel
    "0009": [(4, 3, 3, 20, 20)],  # skin alone
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five photos with their labels."""
    for folder in ("photos", "labels"):
        (tmp_path / folder).mkdir()
    (tmp_path / "label_names.json").write_text(json.dumps(NAMES))
    (tmp_path / "splits.json").write_text(json.dumps(SPLITS, indent=0))
    for photo, parts in PARTS.items():
        label = np.zeros((40, 30), np.uint8)
        for number, x0, y0, x1, y1 in parts:
            label[y0:y1, x0:x1] = number
        Image.fromarray(label).save(tmp_path / "labels" / f"{photo}.png")
    data = placket.data.open(tmp_path)
    for name in data.splits:
        draw(data.split(name))
    return tmp_path


def picture(root: Path, photo: str) -> NDArray[np.uint8]:
    return np.array(Image.open(root / "labels" / f"{photo}.png"))


def test_photos_have_the_categories_of_their_regions(root: Path) -> None:
    data = placket.data.open(root)
    assert isinstance(data, CoParsingDataset)
    assert data.splits == ("train", "valid", "test")
    assert data.names == tuple(NAMES)
    assert data.schema.to_dict() == {"attributes": [{"name": "category", "values": ["bag", "dress", "tie"]}]}
    train = data.split("train")
    assert train.filenames == ("photos/0001.jpg", "photos/0003.jpg", "photos/0009.jpg")
    assert [train.labels[i] for i in range(3)] == [[(0, 0), (0, 1), (0, 2)], [(0, 0), (0, 1)], []]
    assert [train.line(i) for i in range(3)] == [2, 1, 5]  # entries of splits.json
    assert train.masks is None


def test_regions_are_the_pixels_of_a_name(root: Path) -> None:
    rows = placket.data.open(root).region_split("train")
    assert rows is not None
    assert rows.filenames == ("photos/0001.jpg",) * 3 + ("photos/0003.jpg",) * 2
    assert rows.photos.tolist() == [0, 0, 0, 1, 1]  # the photo of skin alone has no row
    assert [rows.labels[i] for i in range(5)] == [[(0, 0)], [(0, 1)], [(0, 2)], [(0, 0)], [(0, 1)]]
    assert rows.boxes.tolist() == [
        [0, 20, 6, 30],
        [5, 10, 25, 38],
        [14, 10, 16, 20],
        [0, 5, 30, 39],
        [5, 5, 25, 30],
    ]
    assert (rows.masks.filenames[3], rows.masks.numbers.tolist()) == ("labels/0003.png", [1, 2, 5, 1, 2])
    np.testing.assert_array_equal(rows.mask(1), picture(root, "0001") == 2)
    assert rows.mask(3).sum() == 4 * 3 + 4 * 9
    assert [rows.line(i) for i in range(5)] == [2, 2, 2, 1, 1]
    (batch,) = Loader(rows, batch=5, shuffle=False, preprocess=Preprocess(size=16, fit="pad"), views="both")
    assert batch.labels.tolist() == [[0], [1], [2], [0], [1]]
    assert not torch.equal(batch.images, batch.segmented)


def test_identities_are_photos(root: Path) -> None:
    data = placket.data.open(root)
    splits = [data.region_split(name) for name in data.splits]
    each = [set(split.identities.tolist()) for split in splits if split is not None]
    assert [len(ids) for ids in each] == [2, 1, 1]
    assert len(set().union(*each)) == 4
    rows = splits[0]
    assert rows is not None
    # Other regions of the same photo.
    assert np.flatnonzero(rows.identities == rows.identities[1]).tolist() == [0, 1, 2]


def test_settings_choose_the_regions(root: Path) -> None:
    body = CoParsingDataset(root, leave_out=())
    assert body.schema["category"].values == ("bag", "dress", "hair", "skin", "tie")
    assert len(body.region_split("train")) == 8
    # A tie of one pixel of 1,200 is less than 0.1 %.
    assert len(placket.data.open(root).region_split("valid")) == 1
    assert len(CoParsingDataset(root, least_share=0).region_split("valid")) == 2
    assert len(CoParsingDataset(root, least_share=1 / 1200).region_split("valid")) == 2
    none = CoParsingDataset(root, least_share=0.9)
    rows = none.region_split("train")
    assert len(rows) == len(rows.filenames) == 0
    assert rows.boxes.shape == (0, 4)
    with pytest.raises(DatasetError, match=r"leave_out must be names of label_names.json, got \['shoe'\]"):
        CoParsingDataset(root, leave_out=["hair", "shoe"])
    with pytest.raises(DatasetError, match="leave_out must leave a name besides the background, got none"):
        CoParsingDataset(root, leave_out=NAMES)
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"least_share must be in \[0, 1\), got"):
            CoParsingDataset(root, least_share=share)


def test_verify_tells_what_is_wrong(root: Path) -> None:
    assert verify(root).ok
    (root / "labels/0001.png").unlink()
    whole = (root / "labels/0003.png").read_bytes()
    (root / "labels/0003.png").write_bytes(whole[:-30])
    label = picture(root, "0004")
    label[0, 0] = 6
    Image.fromarray(label).save(root / "labels/0004.png")
    Image.fromarray(picture(root, "0007")[:39]).save(root / "labels/0007.png")
    (root / "photos/0009.jpg").unlink()
    problems = verify(root).problems
    found = [(p.kind, str(Path(p.file).relative_to(root)), p.line) for p in problems if p.severity == "error"]
    assert sorted(found) == [
        ("damaged", "labels/0003.png", None),
        ("missing", "labels/0001.png", None),
        ("missing", "splits.json", 5),
        ("out of range", "labels/0004.png", None),
        ("out of range", "labels/0007.png", None),
    ]
    messages = {Path(p.file).name: p.message for p in problems if p.kind == "out of range"}
    assert messages["0004.png"] == "numbers must be below 6, the names there are, got 6"
    assert messages["0007.png"] == "mask must have the 30 x 40 pixels of photos/0007.jpg, got 30 x 39"
    data = placket.data.open(root)
    with pytest.raises(
        DatasetError, match=r"labels/0001\.png: label picture must be readable, got .*and 1 more"
    ):
        data.split("train")
    with pytest.raises(DatasetError, match=r"labels/0004\.png: numbers must be below 6"):
        data.region_split("test")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("label_names.json", "[", r"label_names\.json: file must be JSON"),
        ("label_names.json", "{}", "file must hold a list"),
        ("label_names.json", '["null"]', r"list must be of 2 to 256 different names, got \['null'\]"),
        ("label_names.json", '["null", "a", "a"]', "list must be of 2 to 256 different names"),
        ("label_names.json", '["null", "", "a"]', "list must be of 2 to 256 different names"),
        ("label_names.json", json.dumps([str(i) for i in range(257)]), "list must be of 2 to 256"),
        ("splits.json", "[]", "file must hold an object"),
        ("splits.json", "{}", "file must put a photo in a split, got none"),
        ("splits.json", {"0002": "val"}, "6: split of '0002' must be one of train, valid, test, got 'val'"),
        ("splits.json", {"0002": ["train"]}, r"split of '0002' must be one of train, valid, test, got \['tr"),
        ("splits.json", {"../x": "train"}, r"6: key must be the id of a photo, got '\.\./x'"),
        ("splits.json", {"a/b": "train"}, "key must be the id of a photo, got 'a/b'"),
        ("splits.json", {"": "train"}, "key must be the id of a photo, got ''"),
    ],
)
def test_a_bad_list_is_named(root: Path, file: str, content: Any, message: str) -> None:
    if isinstance(content, dict):
        content = json.dumps(json.loads((root / file).read_text()) | content)
    (root / file).write_text(content)
    with pytest.raises(DatasetError, match=message):
        placket.data.open(root).split("train")


def test_damaged_lists_and_pictures_are_read_or_refused(root: Path) -> None:
    files = ["label_names.json", "splits.json", "labels/0001.png", "labels/0004.png"]
    whole = {name: (root / name).read_bytes() for name in files}
    read = refused = 0
    for number in range(160):
        choice = random.Random(f"co-parsing {number}")
        name = choice.choice(files)
        (root / name).write_bytes(damage(whole[name], choice))
        try:
            good = read_all(root, verify=number % 10 == 0)
        except Exception as error:
            raise AssertionError(f"mutant {number} of {name}: {error!r}") from error
        (root / name).write_bytes(whole[name])
        read, refused = read + good, refused + (not good)
    assert read >= 10
    assert refused >= 60


@pytest.mark.data
def test_the_published_photos(photographs: Path) -> None:
    """Against counts of the label pictures by NumPy and Pillow."""
    data = placket.data.open(photographs / "co-parsing")
    assert isinstance(data, CoParsingDataset)
    splits = json.loads((photographs / "co-parsing/splits.json").read_text())
    for name in data.splits:
        photos, rows = data.split(name), data.region_split(name)
        assert rows is not None
        assert len(photos) == sum(split == name for split in splits.values())
        check_regions(photographs / "co-parsing", data, rows)


def check_regions(root: Path, data: CoParsingDataset, rows: Split) -> None:
    assert rows.masks is not None
    assert rows.boxes is not None
    found: dict[str, list[tuple[Any, ...]]] = {}
    for row in range(len(rows)):
        ((_, value),) = rows.labels[row]
        entry = (int(rows.masks.numbers[row]), data.schema[0].values[value], tuple(rows.boxes[row].tolist()))
        found.setdefault(rows.filenames[row], []).append(entry)
    for filename in sorted(found)[::10]:
        label = picture(root, Path(filename).stem)
        expected = []
        for number, count in zip(*np.unique(label, return_counts=True), strict=True):
            if number and data.names[number] not in ("hair", "skin") and count >= 0.001 * label.size:
                ys, xs = np.nonzero(label == number)
                box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
                expected.append((int(number), data.names[number], box))
        assert found[filename] == expected
