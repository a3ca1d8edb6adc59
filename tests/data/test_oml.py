from __future__ import annotations

from pathlib import Path

import pytest
from small_layouts import draw, write

import placket.data
from fuzz.published_layouts import OML, lines
from placket.data import DatasetError, Loader, OmlDataset, Preprocess
from placket.data.dataset import WHOLE_IMAGE


def test_a_table_is_read_as_published(tmp_path: Path) -> None:
    data = placket.data.open(write(tmp_path, OML) / "df.csv")
    assert isinstance(data, OmlDataset)
    assert data.splits == ("train", "valid")
    assert data.schema.to_dict() == {"attributes": [{"name": "category", "values": ["bags", "tops"]}]}
    train, valid = data.split("train"), data.split("valid")
    assert train.filenames == ("images/a.jpg", "images/b.jpg")
    assert [train.labels[i] for i in range(2)] == [[(0, 1)], [(0, 0)]]
    assert [valid.labels[i] for i in range(4)] == [[], [(0, 1)], [(0, 1)], [(0, 0)]]
    assert data.identities == ("12", "7", "9")
    assert (train.identities.tolist(), valid.identities.tolist()) == ([0, 0], [1, 1, 2, 2])
    assert train.boxes.tolist() == [[1, 2, 20, 30], [*WHOLE_IMAGE]]
    assert train.query_images is train.gallery_images is None
    assert (valid.query_images.tolist(), valid.gallery_images.tolist()) == ([0, 2], [1, 2, 3])
    assert (train.sequences.tolist(), valid.sequences.tolist()) == ([0, 0], [-1, 1, 1, 2])
    assert data.captions("train") == ("red, plain", "")
    assert train.lines.tolist() == [2, 3]
    assert len(valid.queries) + len(valid.candidates) == 3
    draw(train)
    (batch,) = Loader(train, batch=2, shuffle=False, preprocess=Preprocess(size=16))
    assert batch.labels.tolist() == [[1], [0]]
    draw(valid)
    store = placket.data.pack(data, tmp_path / "oml.placket")
    assert store.split("valid").sequences.tolist() == valid.sequences.tolist()


def test_only_the_needed_columns_and_a_folder(tmp_path: Path) -> None:
    text = lines("split,is_gallery,is_query,path,label", "validation,1,1,a.jpg,1", "validation,1,1,b.jpg,1")
    data = placket.data.open(write(tmp_path, {"df.csv": text}))
    assert data.splits == ("valid",)
    assert data.schema.names == ()
    split = data.split("valid")
    assert split.boxes is split.sequences is data.captions("valid") is None
    assert len(split.labels) == 2
    assert len(split.queries) == 0
    draw(split)
    (batch,) = Loader(split, batch=2, shuffle=False, preprocess=Preprocess(size=16))
    assert batch.labels.shape == (2, 0)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "label,path,split,is_query",
            r"table must have each of the columns label, path, .* once, got label,",
        ),
        ("label,path,split,is_query,is_gallery,path", "table must have each of the columns"),
        (
            "label,path,split,is_query,is_gallery,x_1",
            "table must have all of x_1, y_1, x_2, y_2 or none, got x_1",
        ),
    ],
)
def test_columns_that_are_absent_are_named(tmp_path: Path, header: str, message: str) -> None:
    row = ",".join(["1", "a.jpg", "train", "", "", ""][: header.count(",") + 1])
    (tmp_path / "df.csv").write_text(lines(header, row))
    with pytest.raises(DatasetError, match=message):
        placket.data.open(tmp_path)


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ("5,/a/f.jpg,validation,1,1,,,,,", "unparsable", "path must lie inside"),
        (",f.jpg,validation,1,1,,,,,", "unparsable", "label must say the identity, got an empty cell"),
        (
            "5,f.jpg,validation,0,0,,,,,",
            "out of range",
            "is_query and is_gallery must be True, 1, False or 0, one",
        ),
        (
            "5,f.jpg,validation,1,,,,,,",
            "out of range",
            "is_query and is_gallery must be True, 1, False or 0, one",
        ),
        ("5,f.jpg,train,1,0,,,,,", "out of range", "is_query and is_gallery must be empty in training, got"),
        (
            "5,f.jpg,validation,1,1,,1,2,,",
            "unparsable",
            "x_1, y_1, x_2, y_2 must be whole numbers below 10^9, got",
        ),
        (
            "5,f.jpg,validation,1,1,,1,2,0.5,2",
            "unparsable",
            "x_1, y_1, x_2, y_2 must be whole numbers below 10^9",
        ),
        ("5,f.jpg,validation,1,1,,2,2,1,2", "out of range", "box must have x_1 < x_2 and y_1 < y_2, got"),
        (
            "5,a.jpg,validation,1,1,,,,,",
            "in two splits",
            "image a.jpg must be there once, got it in line 2 too",
        ),
        ("5,b.jpg,validation,1,1,,,,,", "duplicate", "image b.jpg must be there once, got it in line 3 too"),
        (
            "5,f.jpg,validation,1,0,,,,,",
            "unmatched",
            "gallery must have an image of the product of f.jpg, got none",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, kind: str, message: str) -> None:
    header = "label,path,split,is_query,is_gallery,category,x_1,x_2,y_1,y_2"
    rows = ["1,a.jpg,train,,,top,1,2,3,4", "2,b.jpg,validation,1,1,bag,,,,"]
    path = write(tmp_path, {"table.csv": lines(header, *rows, row)}) / "table.csv"
    data = placket.data.open(path)
    split = "train" if ",train," in row else "valid"
    _, problems = data.inspect(split)
    (problem,) = (p for p in problems if p.kind == kind)
    assert (problem.file, problem.line) == (str(path), 4)
    assert message in problem.message
    if problem.severity == "error":
        with pytest.raises(DatasetError, match=r"table\.csv:4"):
            data.split(split)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "label,path,split,is_query,is_gallery\n1,a.jpg,test,,\n",
            r"df\.csv:2: split must be one of train, validation",
        ),
        ("label,path,split,is_query,is_gallery\n", r"df\.csv: table must have a row, got none"),
        ("label,path,split,is_query,is_gallery\n1,a.jpg\n", r"df\.csv:2: row must have 5 cells, got 2"),
        ('label,path,split,is_query,is_gallery\n1,"a"x,,,\n', r"df\.csv:2: row must be CSV, got"),
        ("", r"df\.csv: table must have each of the columns"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "df.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        placket.data.open(tmp_path)
