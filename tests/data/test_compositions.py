"""Layouts of composed retrieval: FashionIQ and CIRR."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_layouts import draw, write

import placket.data
from fuzz.published_layouts import CIRR, FASHION_IQ
from placket.data import CirrDataset, DatasetError, FashionIqDataset, Loader, Preprocess


def test_fashion_iq_is_read_as_published(tmp_path: Path) -> None:
    data = placket.data.open(write(tmp_path, FASHION_IQ))
    assert isinstance(data, FashionIqDataset)
    assert data.splits == ("train", "valid", "test")
    assert data.schema.to_dict() == {"attributes": [{"name": "category", "values": ["dress", "toptee"]}]}
    train = data.split("train")
    assert train.filenames == tuple(f"images/B0{i}.jpg" for i in range(1, 5))
    assert [train.labels[i] for i in range(4)] == [[(0, 0)], [(0, 0)], [(0, 0), (0, 1)], [(0, 1)]]
    assert train.line(0) is None
    queries = data.compositions("train")
    assert queries.reference.tolist() == [0, 2, 3]
    assert queries.target.tolist() == [1, 0, 2]
    assert queries.category.tolist() == [0, 0, 1]
    assert queries.captions == ("is shorter", " red", "is plain", "has no sleeves", "is darker", "has a logo")
    assert queries.begin.tolist() == [0, 2, 4, 6]
    assert queries.subset is None
    valid, test = data.split("valid"), data.compositions("test")
    assert data.compositions("valid").target.tolist() == [1]
    both = np.concatenate([valid.queries, valid.candidates])
    assert sorted(both.tolist()) == [[0, 0, 0], [1, 0, 0], [2, 0, 0]]
    assert (test.reference.tolist(), test.target.tolist()) == ([0], [-1])
    draw(train)
    (batch,) = Loader(train, batch=4, shuffle=False, preprocess=Preprocess(size=16))
    assert batch.labels.tolist() == [[0], [0], [0], [1]]


def test_fashion_iq_takes_the_images_that_are_there(tmp_path: Path) -> None:
    write(tmp_path, FASHION_IQ)
    (tmp_path / "images").mkdir()
    (tmp_path / "resized_image").mkdir()
    for name in ("B01.png", "B02.jpeg", "B02.txt"):
        Image.new("RGB", (8, 8)).save(tmp_path / "resized_image" / name, "png")
    train = placket.data.open(tmp_path).split("train")
    found = [
        "resized_image/B01.png",
        "resized_image/B02.jpeg",
        "resized_image/B03.jpg",
        "resized_image/B04.jpg",
    ]
    assert train.filenames == found
    report = placket.data.verify(tmp_path)
    assert sum(p.kind == "missing" for p in report.problems) == 7


def test_fashion_iq_tells_images_in_two_splits(tmp_path: Path) -> None:
    write(tmp_path, {**FASHION_IQ, "image_splits/split.dress.val.json": '["B05", "B06", "B04"]'})
    data = placket.data.open(tmp_path)
    (_, problems) = data.inspect("valid")
    (problem,) = (p for p in problems if p.kind == "duplicate")
    assert str(problem) == (
        f"{tmp_path}/image_splits/split.dress.val.json:3: image B04 must be in one split, "
        "got it in split.toptee.train.json too"
    )
    assert len(data.split("valid")) == 3
    write(tmp_path, {"image_splits/split.dress.test.json": '["B08", "B05"]'})
    with pytest.raises(
        DatasetError, match=r"test\.json:2: image B05 must be in one split, got it in split\.dress\.val"
    ):
        placket.data.open(tmp_path).split("test")


def test_cirr_is_read_as_published(tmp_path: Path) -> None:
    data = placket.data.open(write(tmp_path, CIRR))
    assert isinstance(data, CirrDataset)
    assert data.splits == ("train", "valid", "test")
    assert data.schema.names == ()
    train = data.split("train")
    assert train.filenames[1] == "train/34/train-1-0-img1.png"
    assert len(train.labels) == 6
    assert (train.line(1), len(train.queries)) == (2, 0)
    queries = data.compositions("train")
    assert (queries.reference.tolist(), queries.target.tolist()) == ([0, 2], [1, 3])
    assert queries.subset.tolist() == [[1, 2, 3, 4, 5], [0, 1, 3, 4, 5]]
    assert queries.captions == ("show 7 dogs", "show 8 dogs")
    assert queries.category is None
    test = data.compositions("test")
    assert (test.reference.tolist(), test.target.tolist()) == ([1, 2], [-1, -1])
    assert data.pair_ids("test").tolist() == [7, 8]
    assert data.image_names("test")[5] == "test1-5-0-img1"
    (tmp_path / "img_raw").mkdir()
    train = placket.data.open(tmp_path).split("train")
    assert train.filenames[1] == "img_raw/train/34/train-1-0-img1.png"
    draw(train)
    (batch,) = Loader(train, batch=6, shuffle=False, preprocess=Preprocess(size=16))
    assert batch.images.shape == (6, 3, 16, 16)
    with pytest.raises(
        DatasetError, match="to give triplets, got no labels of any values; label more images"
    ):
        Loader(train, sampler="triplets", batch=6)


def test_cirr_tells_images_in_two_splits(tmp_path: Path) -> None:
    name = "image_splits/split.rc2.val.json"
    images = json.loads(CIRR[name]) | {"train-0-0-img0": "./dev/x.png"}
    data = placket.data.open(write(tmp_path, {**CIRR, name: json.dumps(images)}))
    with pytest.raises(
        DatasetError, match=r"val\.json:7: image train-0-0-img0 must be in one split, got it in"
    ):
        data.split("valid")
    assert len(data.split("train")) == 6


def test_sets_with_compositions_are_packed(tmp_path: Path) -> None:
    data = placket.data.open(write(tmp_path / "cirr", CIRR))
    for name in data.splits:
        draw(data.split(name))
    store = placket.data.pack(data, tmp_path / "cirr.placket")
    found, whole = store.compositions("train"), data.compositions("train")
    assert found.subset.tolist() == whole.subset.tolist()
    assert found.captions == whole.captions


DRESS = "captions/cap.dress.val.json"
PAIRS = "captions/cap.rc2.val.json"


@pytest.mark.parametrize(
    ("lists", "name", "content", "kind", "message"),
    [
        (FASHION_IQ, DRESS, "[{", "unparsable", "file must be JSON, got "),
        (FASHION_IQ, DRESS, "[" * 100_000, "unparsable", "file must be JSON, got "),
        (
            FASHION_IQ,
            DRESS,
            '[{"a": 1, "a": 2}]',
            "unparsable",
            "file must be JSON, got an object with a key twice",
        ),
        (FASHION_IQ, DRESS, "{}", "unparsable", "file must hold a list, got {}"),
        (FASHION_IQ, DRESS, '["B05"]', "unparsable", "captions must be one sentence or more, got None"),
        (
            FASHION_IQ,
            DRESS,
            [{"captions": []}],
            "unparsable",
            "captions must be one sentence or more, got []",
        ),
        (
            FASHION_IQ,
            DRESS,
            [{"captions": ["\ud800"]}],
            "unparsable",
            "captions must be one sentence or more",
        ),
        (
            FASHION_IQ,
            DRESS,
            [{"target": "B05", "candidate": "B08", "captions": ["x"]}],
            "out of range",
            "candidate and target must be images of dress, got ['B08', 'B05']",
        ),
        (
            FASHION_IQ,
            DRESS,
            [{"candidate": "B05", "captions": ["x"]}],
            "out of range",
            "candidate and target must",
        ),
        (
            FASHION_IQ,
            DRESS,
            [{"target": [], "candidate": 5, "captions": ["x"]}],
            "out of range",
            "candidate and",
        ),
        (
            FASHION_IQ,
            "image_splits/split.dress.val.json",
            [5],
            "unparsable",
            "entry must be the id of an image, got 5",
        ),
        (
            FASHION_IQ,
            "image_splits/split.dress.val.json",
            ["../B"],
            "unparsable",
            "entry must be the id of an image",
        ),
        (
            FASHION_IQ,
            "image_splits/split.dress.val.json",
            ["\ud800"],
            "unparsable",
            "entry must be the id of an",
        ),
        (
            FASHION_IQ,
            "image_splits/split.dress.val.json",
            [],
            "unparsable",
            "split 'valid' must have at least one",
        ),
        (CIRR, PAIRS, [{}], "unparsable", "pairid must be a number, got None"),
        (CIRR, PAIRS, {"caption": 5}, "unparsable", "caption must be a sentence, got 5"),
        (
            CIRR,
            PAIRS,
            {"reference": "x"},
            "out of range",
            "reference and target_hard must be images, got ['x',",
        ),
        (CIRR, PAIRS, {"target_hard": None}, "out of range", "reference and target_hard must be images, got"),
        (
            CIRR,
            PAIRS,
            {"img_set": {"members": ["val-0-0-img0", "val-5-0-img1"]}},
            "out of range",
            "members of img_set",
        ),
        (CIRR, PAIRS, {"img_set": {"members": "val-0-0-img0"}}, "out of range", "members of img_set must be"),
        (
            CIRR,
            PAIRS,
            {"img_set": 5},
            "out of range",
            "members of img_set must be different images, reference and",
        ),
        (
            CIRR,
            "image_splits/split.rc2.val.json",
            '{"a": 5}',
            "unparsable",
            "entry must be the name of an image and",
        ),
        (
            CIRR,
            "image_splits/split.rc2.val.json",
            '{"a": "/x"}',
            "unparsable",
            "entry must be the name of an image",
        ),
        (CIRR, "image_splits/split.rc2.val.json", "[]", "unparsable", "file must hold an object, got []"),
    ],
)
def test_a_bad_entry_is_named(
    tmp_path: Path, lists: dict[str, str], name: str, content: Any, kind: str, message: str
) -> None:
    if isinstance(content, dict):  # what is changed in the first composition
        content = [json.loads(lists[name])[0] | content]
    text = content if isinstance(content, str) else json.dumps(content)
    data = placket.data.open(write(tmp_path, {**lists, name: text}))
    _, problems = data.inspect("valid")
    assert any(p.kind == kind and message in p.message and p.line in (None, 1) for p in problems), problems
    with pytest.raises(DatasetError, match=rf"^{tmp_path}/[a-z_]+"):
        (data.split("valid"), data.compositions("valid"))
    assert len(data.split("train")) >= 4


@pytest.mark.parametrize(("lists", "split"), [(FASHION_IQ, "dress.val"), (CIRR, "rc2.val")])
def test_a_file_that_is_absent_is_named(tmp_path: Path, lists: dict[str, str], split: str) -> None:
    for name in (f"image_splits/split.{split}.json", f"captions/cap.{split}.json"):
        write(tmp_path, lists)
        (tmp_path / name).unlink()
        data = placket.data.open(tmp_path)
        with pytest.raises(
            DatasetError, match=f"{name}: file must be readable text in UTF-8, got .*No such file"
        ):
            (data.split("valid"), data.compositions("valid"))
