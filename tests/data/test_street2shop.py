from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_layouts import draw, write

import placket.data
from fuzz.published_layouts import STREET2SHOP
from placket.data import DatasetError, Loader, Preprocess, Street2ShopDataset
from placket.data.dataset import WHOLE_IMAGE


def test_street2shop_is_read_as_published(tmp_path: Path) -> None:
    data = placket.data.open(write(tmp_path, STREET2SHOP))
    assert isinstance(data, Street2ShopDataset)
    assert data.splits == ("train", "test")
    assert data.schema.to_dict() == {"attributes": [{"name": "category", "values": ["bags", "hats"]}]}
    test, train = data.split("test"), data.split("train")
    assert train.filenames == tuple(f"photos/0000000{i}.jpg" for i in ("01", "01", "11", "12", "13"))
    assert train.boxes.tolist() == [[0, 2, 10, 14], [0, 0, 17, 20]] + [[*WHOLE_IMAGE]] * 3
    assert [record.box for record in train.records] == [(0, 2, 10, 14), (0, 0, 17, 20), None, None, None]
    assert train.domains.tolist() == [1, 1, 0, 0, 0]
    assert train.identities.tolist() == [0, 1, 0, 0, 1]
    assert data.identities == (("bags", 5), ("bags", 6), ("bags", 7), ("bags", 8), ("hats", 5))
    assert test.identities.tolist() == [2, 0, 0, 1, 2, 3, 4, 4]
    assert test.query_images.tolist() == [0, 6]
    assert test.gallery_images.tolist() == [1, 2, 3, 4, 5, 7]
    assert [test.labels[i] for i in (0, 5, 6, 7)] == [[(0, 0)], [(0, 0)], [(0, 1)], [(0, 1)]]
    assert len(test.queries) + len(test.candidates) == 8
    for name in ("train", "test"):
        draw(data.split(name))
    store = placket.data.pack(data, tmp_path / "street.placket", size=8)
    assert [record.box for record in store.split("train").records] == [
        (0, 0, 3, 4),
        (0, 0, 5, 5),
        None,
        None,
        None,
    ]


def test_shop_photos_are_whole(tmp_path: Path) -> None:
    train = placket.data.open(write(tmp_path, STREET2SHOP)).split("train")
    draw(train)
    unboxed = dataclasses.replace(train, boxes=None)
    for preprocess in (Preprocess(size=16, box_margin=0.5), Preprocess(size=16, fit="pad", box_margin=9.0)):
        (batch,) = Loader(train, batch=5, shuffle=False, preprocess=preprocess)
        (whole,) = Loader(unboxed, batch=5, shuffle=False, preprocess=preprocess)
        assert batch.labels.tolist() == [[0]] * 5
        assert (batch.images[2:] == whole.images[2:]).all()


def test_photos_have_other_names_too(tmp_path: Path) -> None:
    write(tmp_path, {name.replace("meta/json", "meta/meta/json"): text for name, text in STREET2SHOP.items()})
    for name in ("photos/photos.txt", "images/1.jpeg", "images/000000011.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name, "png")
    train = placket.data.open(tmp_path).split("train")
    assert train.filenames[:4] == [
        "images/1.jpeg",
        "images/1.jpeg",
        "images/000000011.PNG",
        "images/000000012.jpg",
    ]


TRAIN = "meta/json/train_pairs_bags.json"
SHOP = "meta/json/retrieval_bags.json"


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        (TRAIN, "{}", "unparsable", "file must hold a list, got {}"),
        (TRAIN, "[]", "unparsable", "split 'train' must have at least one pair, got none"),
        (TRAIN, [5], "unparsable", "photo and product must be whole numbers, got (None, None)"),
        (TRAIN, {"photo": "1"}, "unparsable", "photo and product must be whole numbers, got ('1', 5)"),
        (TRAIN, {"photo": True}, "unparsable", "photo and product must be whole numbers, got (True, 5)"),
        (TRAIN, {"product": -1}, "unparsable", "photo and product must be whole numbers, got (1, -1)"),
        (TRAIN, {"product": 10**9999}, "unparsable", ""),
        (
            TRAIN,
            {"bbox": None},
            "out of range",
            "bbox must have left, top, width and height in whole numbers that",
        ),
        (
            TRAIN,
            {"bbox": {"left": 1, "top": 1, "width": 0, "height": 2}},
            "out of range",
            "bbox must have left,",
        ),
        (
            TRAIN,
            {"bbox": {"left": -3, "top": 1, "width": 3, "height": 2}},
            "out of range",
            "bbox must have left,",
        ),
        (
            TRAIN,
            {"bbox": {"left": 0, "top": 1, "width": 2**40, "height": 2}},
            "out of range",
            "bbox must have left,",
        ),
        (SHOP, [{"photo": 1}], "unparsable", "photo and product must be whole numbers, got (1, None)"),
    ],
)
def test_a_bad_entry_is_named(tmp_path: Path, name: str, content: Any, kind: str, message: str) -> None:
    if isinstance(content, dict):  # what is changed in the first pair
        content = [json.loads(STREET2SHOP[name])[0] | content]
    try:
        text = content if isinstance(content, str) else json.dumps(content)
    except ValueError:  # more digits than Python writes
        text = '[{"photo": 1, "product": ' + "9" * 9999 + "}]"
    data = placket.data.open(write(tmp_path, {**STREET2SHOP, name: text}))
    _, problems = data.inspect("train")
    assert any(p.kind == kind and message in p.message and p.line in (None, 1) for p in problems), problems
    with pytest.raises(DatasetError, match=rf"^{tmp_path}/meta/json"):
        data.split("train")


def test_a_product_of_training_is_no_query(tmp_path: Path) -> None:
    name = "meta/json/test_pairs_bags.json"
    text = STREET2SHOP[name].replace('"product": 7', '"product": 6')
    data = placket.data.open(write(tmp_path, {**STREET2SHOP, name: text}))
    with pytest.raises(
        DatasetError, match=r"test_pairs_bags\.json:1: product 6 must be in one split, got it in train"
    ):
        data.split("test")
    assert len(data.split("train")) == 5


def test_what_is_odd_is_a_warning(tmp_path: Path) -> None:
    pairs = json.loads(STREET2SHOP[TRAIN])
    text = json.dumps([pairs[0], pairs[0], {**pairs[1], "product": 99}])
    train = placket.data.open(write(tmp_path, {**STREET2SHOP, TRAIN: text})).split("train")
    assert len(train) == 4
    assert train.warnings[0] == f"{tmp_path / TRAIN}:2: photo 1 of product 5 must be there once, got it again"
    assert "gallery must have an image of the product of photos/000000001.jpg, got none" in train.warnings[1]


def test_photos_of_two_images_are_no_fault(tmp_path: Path) -> None:
    """One street photo shows two products, and the gallery of test has the shop photos of training."""
    data = placket.data.open(write(tmp_path, STREET2SHOP))
    for name in data.splits:
        draw(data.split(name))
    report = placket.data.verify(data)
    assert report.ok
    assert {problem.kind for problem in report.problems} == {"single value"}


def test_shop_photos_are_needed(tmp_path: Path) -> None:
    write(tmp_path, STREET2SHOP)
    (tmp_path / SHOP).unlink()
    with pytest.raises(
        DatasetError, match=r"retrieval_bags\.json: file must be readable text .*No such file"
    ):
        placket.data.open(tmp_path).split("test")
