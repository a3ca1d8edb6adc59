from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from small_layouts import draw, write

import placket.data
from fuzz.published_layouts import ATTRIBUTE_PREDICTION, CONSUMER_TO_SHOP, IN_SHOP, lines
from placket.data import (
    AttributePredictionDataset,
    ConsumerToShopDataset,
    DatasetError,
    InShopDataset,
    Loader,
    Preprocess,
    Problem,
)
from placket.data.lists import positives

FRONT = "img/WOMEN/Tees/id_00000002/01_1_front.jpg"
TOPS = "img/TOPS/id_00000001"
PARTITION = "Eval/list_eval_partition.txt"


def test_attribute_prediction_is_read_as_published(tmp_path: Path) -> None:
    data = placket.data.open(write(tmp_path, ATTRIBUTE_PREDICTION))
    assert isinstance(data, AttributePredictionDataset)
    assert data.splits == ("train", "valid", "test")
    assert data.schema.to_dict() == {
        "attributes": [
            {"name": "texture", "values": ["abstract print", "lace"]},
            {"name": "fabric", "values": ["lace", "lace (2)"]},
            {"name": "shape", "values": ["a-line"]},
            {"name": "part", "values": ["bell sleeve"]},
            {"name": "category", "values": ["Tee", "Cape Dress"]},
        ]
    }
    train, test = data.split("train"), data.split("test")
    assert train.filenames == ("img/Tee/1.jpg", "img/Dress/1.jpg")
    assert [sorted(train.labels[i]) for i in range(2)] == [
        [(0, 0), (0, 1), (1, 0), (4, 0)],
        [(2, 0), (3, 0), (4, 1)],
    ]
    assert train.boxes.tolist() == [[1, 2, 20, 30], [1, 2, 22, 30]]
    assert train.lines.tolist() == [3, 5]
    assert train.identities is train.domains is train.query_images is None
    assert [sorted(test.labels[i]) for i in range(2)] == [[(4, 1)], [(0, 0), (2, 0), (4, 1)]]
    both = np.concatenate([test.queries, test.candidates])
    assert sorted(both.tolist()) == [[0, 4, 1], [1, 0, 0], [1, 2, 0], [1, 4, 1]]
    assert len(train.queries) == 0
    draw(train)
    (batch,) = Loader(train, batch=2, shuffle=False, preprocess=Preprocess(size=16))
    assert batch.labels[1].tolist() == [-1, -1, 0, 0, 1]
    assert data.captions("train") is data.compositions("train") is None


def test_images_may_lie_beside_their_archive(tmp_path: Path) -> None:
    (tmp_path / "Img" / "img").mkdir(parents=True)
    lists = {name.replace("Anno/", "Anno_coarse/"): text for name, text in ATTRIBUTE_PREDICTION.items()}
    train = placket.data.open(write(tmp_path, lists)).split("train")
    assert train.filenames == ("Img/img/Tee/1.jpg", "Img/img/Dress/1.jpg")


def test_in_shop_is_read_as_published(tmp_path: Path) -> None:
    data = placket.data.open(write(tmp_path, IN_SHOP))
    assert isinstance(data, InShopDataset)
    assert data.splits == ("train", "test")
    assert data.schema.names == ("clothes_type", "pose_type", "attribute")
    assert data.schema["attribute"].values == ("acid wash", "button", "denim")
    train, test = data.split("train"), data.split("test")
    assert (len(train), len(test)) == (2, 3)
    assert [train.labels[i] for i in range(2)] == [[(0, 0), (1, 0), (2, 1)], [(0, 0), (1, 1), (2, 1)]]
    assert [test.labels[i] for i in (1, 2)] == [[(0, 0), (1, 2)], [(0, 1), (1, 5), (2, 0), (2, 2)]]
    assert train.boxes.tolist()[0] == [50, 49, 208, 182]
    assert train.identities.tolist() == [0, 0]
    assert test.identities.tolist() == [1, 1, 2]
    assert data.identities == ("id_00000001", "id_00000002", "id_00000003")
    assert train.query_images is train.gallery_images is None
    assert test.query_images.tolist() == [0]
    assert test.gallery_images.tolist() == [1, 2]
    for name in ("Anno/attributes/list_attr_items.txt", "Anno/list_item_inshop.txt"):
        (tmp_path / name).unlink()
    assert placket.data.open(tmp_path).schema.names == ("clothes_type", "pose_type")


def test_consumer_to_shop_is_read_as_published(tmp_path: Path) -> None:
    data = placket.data.open(write(tmp_path, CONSUMER_TO_SHOP))
    assert isinstance(data, ConsumerToShopDataset)
    assert data.splits == ("train", "valid", "test")
    assert data.schema.to_dict() == {
        "attributes": [
            {"name": "clothes_type", "values": ["upper-body", "lower-body", "full-body"]},
            {"name": "length of upper-body clothes", "values": ["Regular length (51-65cm)"]},
            {"name": "part details of clothes", "values": ["Pleated (打褶)", "Pleated (百褶)", "Lace"]},
        ]
    }
    train, valid, test = (data.split(name) for name in data.splits)
    assert [name.rpartition("/")[2] for name in train.filenames] == [
        "comsumer_01.jpg",
        "shop_01.jpg",
        "comsumer_02.jpg",
    ]
    assert train.domains.tolist() == [1, 0, 1]
    assert train.query_images.tolist() == [0, 2]
    assert train.gallery_images.tolist() == [1]
    assert train.boxes[:, 0].tolist() == [1, 3, 2]
    assert (train.identities.tolist(), valid.identities.tolist()) == ([0, 0, 0], [1, 1])
    assert test.identities.tolist() == [2, 2, 2]
    assert [train.labels[i] for i in range(3)] == [[(0, 0), (1, 0), (2, 1), (2, 2)]] * 3
    assert valid.labels[0] == [(0, 2)]
    assert test.labels[0] == [(0, 0), (2, 0)]
    draw(test)
    (batch,) = Loader(test, batch=3, shuffle=False, preprocess=Preprocess(size=16))
    assert batch.labels.tolist() == [[0, -1, 0]] * 3


@pytest.mark.parametrize(
    ("lists", "name", "line", "content", "kind", "message"),
    [
        (ATTRIBUTE_PREDICTION, PARTITION, 4, "img/a.jpg", "unparsable", "line must be 'image status', got"),
        (ATTRIBUTE_PREDICTION, PARTITION, 4, "/img/a.jpg val", "unparsable", "path must lie inside"),
        (
            ATTRIBUTE_PREDICTION,
            PARTITION,
            4,
            "img/Tee/2.jpg query",
            "out of range",
            "status must be one of train,",
        ),
        (
            ATTRIBUTE_PREDICTION,
            PARTITION,
            7,
            "img/Tee/1.jpg test",
            "in two splits",
            "image img/Tee/1.jpg must have one status, got test here and train in line 3",
        ),
        (
            ATTRIBUTE_PREDICTION,
            "Anno/list_bbox.txt",
            3,
            "img/Tee/1.jpg 1 2 3",
            "unparsable",
            "line must be 'image x1",
        ),
        (
            ATTRIBUTE_PREDICTION,
            "Anno/list_bbox.txt",
            3,
            "img/Tee/1.jpg 1 2 3 x",
            "unparsable",
            "box must be four",
        ),
        (
            ATTRIBUTE_PREDICTION,
            "Anno/list_bbox.txt",
            3,
            "img/Tee/1.jpg 3 2 3 9",
            "out of range",
            "box must have x0 < x1 and y0 < y1, got 3 2 3 9",
        ),
        (
            ATTRIBUTE_PREDICTION,
            "Anno/list_bbox.txt",
            4,
            "img/Tee/1.jpg 1 2 3 4",
            "unparsable",
            "image img/Tee/1.jpg must be there once, got it again",
        ),
        (
            ATTRIBUTE_PREDICTION,
            "Anno/list_category_img.txt",
            3,
            "img/Tee/1.jpg 3",
            "out of range",
            "category must be from 1 to 2, got '3'",
        ),
        (
            ATTRIBUTE_PREDICTION,
            "Anno/list_attr_cloth.txt",
            3,
            "lace 6",
            "out of range",
            "type must be from 1 to 5",
        ),
        (
            ATTRIBUTE_PREDICTION,
            "Anno/list_attr_cloth.txt",
            3,
            "1",
            "unparsable",
            "line must be a name and a type",
        ),
        (
            ATTRIBUTE_PREDICTION,
            "Anno/list_attr_img.txt",
            3,
            "img/Dress/1.jpg 1 1 1 1 1",
            "unparsable",
            "line must be",
        ),
        (
            ATTRIBUTE_PREDICTION,
            "Anno/list_attr_img.txt",
            1,
            "six",
            "unparsable",
            "first line must be the number of",
        ),
        (
            ATTRIBUTE_PREDICTION,
            "Anno/list_attr_img.txt",
            3,
            "",
            "unparsable",
            "list must have 6 rows, as its first",
        ),
        (
            ATTRIBUTE_PREDICTION,
            "Anno/list_category_img.txt",
            3,
            "img/Other/2.jpg 1",
            "missing",
            "list must have a row of image img/Tee/1.jpg, got none",
        ),
        (
            IN_SHOP,
            PARTITION,
            5,
            f"{FRONT} id_00000001 query",
            "leak",
            "item id_00000001 must be in one split, got test here and train before",
        ),
        (
            IN_SHOP,
            PARTITION,
            6,
            f"{FRONT} id_00000002 gallery",
            "in two splits",
            f"image {FRONT} must have one status, got gallery here and query in",
        ),
        (
            IN_SHOP,
            PARTITION,
            6,
            f"{FRONT} id_00000005 query",
            "unparsable",
            f"image {FRONT} must show one item",
        ),
        (
            IN_SHOP,
            "Anno/list_bbox_inshop.txt",
            3,
            "img/WOMEN/Tees/id_00000001/01_1_front.jpg 4 1 1 1 2 2",
            "out of range",
            "clothes_type must be from 1 to 3, got '4'",
        ),
        (
            IN_SHOP,
            "Anno/list_bbox_inshop.txt",
            3,
            "img/WOMEN/Tees/id_00000001/01_1_front.jpg 1 0 1 1 2 2",
            "out of range",
            "pose_type must be from 1 to 6, got '0'",
        ),
        (
            IN_SHOP,
            "Anno/attributes/list_attr_items.txt",
            5,
            "id_00000003 1 1 1",
            "unparsable",
            "item id_00000003 must have the same labels wherever it is, got others before",
        ),
        (
            CONSUMER_TO_SHOP,
            "Anno/list_bbox_consumer2shop.txt",
            3,
            "img/TOPS/id_00000001/comsumer_01.jpg 1 1 1 1 2 2",
            "unparsable",
            "source_type must be 2, as",
        ),
        (
            CONSUMER_TO_SHOP,
            PARTITION,
            4,
            f"{TOPS}/comsumer_01.jpg {TOPS}/shop_02.jpg id_00000009 train",
            "unparsable",
            f"image {TOPS}/comsumer_01.jpg must show one item in one place, got another in line 3",
        ),
        (
            CONSUMER_TO_SHOP,
            "Anno/list_attr_cloth.txt",
            3,
            "短 Short  1",
            "unparsable",
            "line must have 3 columns",
        ),
        (
            CONSUMER_TO_SHOP,
            "Anno/list_attr_cloth.txt",
            3,
            "短  Short  3",
            "out of range",
            "attribute_type must be",
        ),
        (
            CONSUMER_TO_SHOP,
            "Anno/list_attr_type.txt",
            3,
            "短  part details of clothes",
            "unparsable",
            "types must",
        ),
    ],
)
def test_a_bad_line_is_named(
    tmp_path: Path, lists: dict[str, str], name: str, line: int, content: str, kind: str, message: str
) -> None:
    rows = lists[name].split("\n")
    rows[line - 1] = content
    write(tmp_path, {**lists, name: "\n".join(rows)})
    if name.endswith(("list_attr_cloth.txt", "list_attr_type.txt")):  # without names there is no schema
        with pytest.raises(DatasetError, match=re.escape(f"{tmp_path / name}") + f".*{message}"):
            placket.data.open(tmp_path)
        return
    data = placket.data.open(tmp_path)
    for split in data.splits:
        _, problems = data.inspect(split)
        assert any(
            (p.kind, p.file) == (kind, str(tmp_path / name))
            and p.line in (None, line)
            and message in p.message
            for p in problems
        ), problems
        with pytest.raises(DatasetError, match="list_"):
            data.split(split)


@pytest.mark.parametrize(
    ("lists", "optional"),
    [
        (ATTRIBUTE_PREDICTION, ()),
        (IN_SHOP, ("Anno/list_item_inshop.txt", "Anno/attributes/list_attr_items.txt")),
        (CONSUMER_TO_SHOP, ("Anno/list_attr_items.txt",)),
    ],
)
def test_a_list_that_is_absent_is_named(
    tmp_path: Path, lists: dict[str, str], optional: tuple[str, ...]
) -> None:
    for name in lists:
        write(tmp_path, lists)
        (tmp_path / name).unlink()
        if name in optional:
            assert len(placket.data.open(tmp_path).split("train"))
            continue
        with pytest.raises(DatasetError, match=f"{Path(name).name}: file must be readable|got "):
            placket.data.open(tmp_path).split("train")


def test_verify_tells_a_list_of_all_splits_once(tmp_path: Path) -> None:
    rows = ATTRIBUTE_PREDICTION["Anno/list_category_img.txt"].replace(
        "img/Tee/2.jpg      1", "img/Tee/2.jpg 9"
    )
    data = placket.data.open(write(tmp_path, {**ATTRIBUTE_PREDICTION, "Anno/list_category_img.txt": rows}))
    report = placket.data.verify(data)
    assert report.images == {"train": 2, "valid": 1, "test": 2}
    (problem,) = (p for p in report.problems if p.kind == "out of range")
    assert str(problem) == f"{tmp_path}/Anno/list_category_img.txt:4: category must be from 1 to 2, got '9'"
    assert sum(p.kind == "missing" for p in report.problems) == 5
    assert not report.ok


def test_a_query_without_its_product_is_a_warning(tmp_path: Path) -> None:
    rows = IN_SHOP[PARTITION].replace("id_00000002 gallery", "id_00000004 gallery")
    test = placket.data.open(write(tmp_path, {**IN_SHOP, PARTITION: rows})).split("test")
    message = f"{tmp_path / PARTITION}:5: gallery must have an image of the product of {FRONT}, got none"
    assert message in test.warnings


def test_an_image_that_is_listed_twice_is_one(tmp_path: Path) -> None:
    text = ATTRIBUTE_PREDICTION[PARTITION].replace("5\n", "6\n", 1) + lines("img/Tee/1.jpg train")
    train = placket.data.open(write(tmp_path, {**ATTRIBUTE_PREDICTION, PARTITION: text})).split("train")
    assert len(train) == 2
    assert str(Problem("duplicate", str(tmp_path / PARTITION), 8, "image img/Tee/1.jpg")) in train.warnings[0]


@pytest.mark.parametrize(
    ("text", "columns"),
    [("1 0 -1 1", [0, 3]), ("\t1  1 1 1 ", [0, 1, 2, 3]), ("-1 -1 0 0", [])]
    + [(text, None) for text in ("1 0 -1", "1 0 -1 1 1", "1 0 -0 1", "1 0 11 1", "1 0 - 1", "", "1 0 --1 1")]
    + [("1 0 1 é", None), ("1 0 1 -", None)],
)
def test_positives(text: str, columns: list[int] | None) -> None:
    found = positives(text, 4)
    assert (None if found is None else found.tolist()) == columns
