from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import placket.data
from placket.data import DatasetError, Loader, Preprocess, TableDataset, verify

Photograph = Callable[..., NDArray[np.uint8]]

COLUMNS = ["number", "product", "colour", "kind", "text", "part", "x0", "y0", "x1", "y1"]
ROWS = [
    ["0011", "p1", "red|blue", "shirt", "a, comma", "fit", "0", "0", "20", "30"],
    ["0012", "p1", "blue", "shirt", "", "fit", "1", "1", "20", "30"],
    ["0021", "p2", "red", "", 'a "quote"', "fit", "1", "1", "20", "30"],
    ["0022", "", "rare", "skirt", "two\nlines", "fit", "1", "1", "20", "30"],
    ["0031", "p2", "blue", "skirt", "x", "check", "1", "1", "20", "30"],
    ["0032", "p3", "never", "skirt", "y", "check", "1", "1", "20", "30"],
    ["0041", "p3", "red", "skirt", "z", "unused", "1", "1", "20", "30"],
]
LAYOUT = """\
table: table.csv
image: images/{number:.3}/{number}.jpg
attributes: {colour: colour, kind: kind}
split: part
splits: {fit: train, check: test}
identity: product
caption: text
box: [x0, y0, x1, y1]
separator: "|"
"""


def write(folder: Path, rows: list[list[str]], layout: str = LAYOUT) -> Path:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\n') else text

    lines = [",".join(map(cell, row)) for row in [COLUMNS, *rows]]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    (folder / "layout.yaml").write_text(layout)
    return folder / "layout.yaml"


@pytest.fixture
def table(tmp_path: Path, photograph: Photograph) -> Path:
    for number, *_ in ROWS:
        path = tmp_path / "images" / number[:3] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(40, 30)).save(path)
    return write(tmp_path, ROWS)


def test_a_table_is_read_as_its_layout_says(table: Path) -> None:
    data = placket.data.open(table)
    assert isinstance(data, TableDataset)
    assert data.splits == ("train", "test")
    assert data.schema.names == ("colour", "kind")
    assert [a.values for a in data.schema.attributes] == [("blue", "rare", "red"), ("shirt", "skirt")]
    train, test = data.split("train"), data.split("test")
    assert train.filenames == tuple(f"images/00{i}/00{i}{j}.jpg" for i in (1, 2) for j in (1, 2))
    assert [train.labels[i] for i in range(4)] == [
        [(0, 2), (0, 0), (1, 0)],
        [(0, 0), (1, 0)],
        [(0, 2)],
        [(0, 1), (1, 1)],
    ]
    assert [test.labels[i] for i in range(2)] == [[(0, 0), (1, 1)], [(1, 1)]]  # "never" is not in training
    assert train.identities.tolist() == [0, 0, 1, -1]
    assert test.identities.tolist() == [1, 2]
    assert data.identities == ("p1", "p2", "p3")
    assert data.captions("train") == ("a, comma", "", 'a "quote"', "two\nlines")
    assert train.boxes.tolist()[0] == [0, 0, 20, 30]
    assert train.lines.tolist() == [2, 3, 4, 6]
    assert len(train.queries) == len(train.candidates) == 0
    assert len(data) == 6
    (batch,) = Loader(train, batch=4, shuffle=False, preprocess=Preprocess(size=16))
    assert batch.labels.tolist() == [[2, 0], [0, 0], [2, -1], [1, 1]]


def test_values_with_few_images_are_no_labels(table: Path) -> None:
    table.write_text(LAYOUT + "least_images: 2\n")
    schema = placket.data.open(table).schema
    assert [a.values for a in schema.attributes] == [("blue", "red"), ("shirt",)]


def test_queries_and_candidates_divide_the_labelled_images(tmp_path: Path) -> None:
    rows = [
        [f"{i:04}", "p", "red|blue" if i % 2 else "blue", "shirt" if i % 3 else "", "", "fit", *"0011"]
        for i in range(2000)
    ]
    tests = [[*row[:5], "check", *row[6:]] for row in rows]
    split = placket.data.open(write(tmp_path, rows + tests)).split("test")
    both = np.concatenate([split.queries, split.candidates])
    assert len(both) == 2000 + sum(i % 3 > 0 for i in range(2000))
    assert len(np.unique(both[:, :2], axis=0)) == len(both)
    for image, attribute, value in both[:200].tolist():
        assert (attribute, value) == next(p for p in split.labels[image] if p[0] == attribute)
    # Five standard deviations of a binomial share.
    assert abs(len(np.unique(split.queries[:, 0])) / 2000 - 0.2) < 5 * (0.2 * 0.8 / 2000) ** 0.5
    assert not set(split.queries[:, 0].tolist()) & set(split.candidates[:, 0].tolist())
    # An image keeps its part when rows before it go.
    later = placket.data.open(write(tmp_path, rows + tests[1000:])).split("test")
    asked = {split.filenames[i] for i in split.queries[:, 0]}
    kept = {later.filenames[i] for i in later.queries[:, 0]}
    assert kept == asked & set(later.filenames)


def test_images_of_products_with_others_ask_among_all(tmp_path: Path) -> None:
    products = ["a", "b", "a", "", "c", "", "b", "b"]
    rows = [
        [f"{part}{i:03}", product, "red", "shirt", "", part, *"0011"]
        for part in ("fit", "check")
        for i, product in enumerate(products)
    ]
    data = placket.data.open(write(tmp_path, rows))
    train, test = data.split("train"), data.split("test")
    assert train.query_images is train.gallery_images is None
    assert test.query_images.tolist() == [0, 1, 2, 6, 7]
    assert test.gallery_images.tolist() == [*range(8)]
    alone = placket.data.open(write(tmp_path, rows, LAYOUT.replace("identity: product\n", ""))).split("test")
    assert alone.identities is alone.query_images is alone.gallery_images is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("table: table.csv", "table: table.txt"), r"table must be a .csv or .tsv file, got 'table.txt'"),
        (("table: table.csv", "table: none.csv"), r"none.csv: table must be readable text .*No such"),
        (("table: table.csv\n", ""), r"layout.yaml: file must say table, image, attributes, got"),
        (("split: part", "splitt: part"), r"layout.yaml: keys must be among table, .*, got splitt"),
        (("identity: product", "identity: sku"), r"table must have each of .*sku.* once, got number"),
        (("identity: product", "identity: [a]"), r"layout.yaml: identity must be of type str, got \['a'\]"),
        (("check: test", "check: eval"), r"layout.yaml: splits must lead to train, valid, test, got eval"),
        (("{fit: train, check: test}", "{a: train}"), r"must have a row whose part is in \['a'\], got"),
        (("[x0, y0, x1, y1]", "[x0, y0]"), r"layout.yaml: box must name four columns, got"),
        (('"|"', '"|"\nleast_images: 9'), r"'colour' must have a value with 9 training images"),
        (('"|"', '"|"\nquery_share: 1.0'), r"query_share must be in \(0, 1\), got 1.0"),
        (("images/", "../images/"), r"table.csv:2: path must lie inside .*, got '../images"),
        (("{number:.3}", "{number.real}"), r"layout.yaml: image must be a pattern with {column}s, got"),
        (("{number:.3}", "{number"), r"layout.yaml: image must be a pattern with {column}s, got"),
        (("{number:.3}", "{}"), r"layout.yaml: image must be a pattern with {column}s, got"),
        (("{number:.3}", "{number:{x}}"), r"layout.yaml: image must be a pattern with {column}s, got"),
        (("{number:.3}", "{number:>1000}"), r"image must be a pattern .*: its widths must be below 1000"),
        (('"|"', '""'), r"layout.yaml: separator must have a character, got ''"),
        (('"|"', '"|"\nleast_images: 0x' + 4000 * "f"), r"least_images must be .*, got a number of too many"),
        (('"|"', "2020-13-45"), r"layout.yaml: file must be YAML, got month must be in 1..12"),
        (('"|"', "!!int x"), r"layout.yaml: file must be YAML, got"),
        (('"|"', 9000 * "["), r"layout.yaml: file must be YAML, got maximum recursion depth exceeded"),
        (("fit: train", "1: train"), r"names must be text \(put numbers in quotes\), got \[1\]"),
        (("check: test", "check: ~"), r"names must be text \(put numbers in quotes\), got \[None\]"),
        (("kind: kind", "kind: {a: b}"), r"names must be text \(put numbers in quotes\), got \[{'a': 'b'}\]"),
        (("x0, y0, x1", "x0, ~, x1"), r"names must be text \(put numbers in quotes\), got \[None\]"),
        (("table.csv", '"a\\0.csv"'), r"names must be text \(put numbers in quotes\), got \['a.x00.csv'\]"),
        (("table: table.csv", "table: [oops"), r"layout.yaml: file must be YAML, got"),
    ],
    ids=lambda value: value[1][:40] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_a_layout_that_does_not_fit_is_named(table: Path, change: tuple[str, str], message: str) -> None:
    text = LAYOUT.replace(*change)
    assert text != LAYOUT
    table.write_text(text)
    with pytest.raises(DatasetError, match=message):
        placket.data.open(table).split("train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0099,p,red,shirt,t,fit,1,1,20", r"table.csv:2: row must have 10 cells, got 9"),
        ('0099,p,"red"x,shirt,t,fit,1,1,20,30', r"table.csv:2: row must be CSV, got"),
        ("0099,p,red,shirt,t,fit,1,1,1,30", r"table.csv:2: box must have x0 < x1 and y0 < y1, got 1 1 1 30"),
        ("0099,p,red,shirt,t,fit,1,1,a,30", r"table.csv:2: box must be four whole numbers .*, got \['1'"),
        ("0099,p,red,shirt,t,fit,1,1,1234567890,30", r"table.csv:2: box must be four whole .*'1234567890'"),
    ],
)  # fmt: skip
def test_a_line_that_does_not_parse_is_named(table: Path, line: str, message: str) -> None:
    path = table.parent / "table.csv"
    header, rest = path.read_text().split("\n", 1)
    path.write_text(f"{header}\n{line}\n{rest}")
    with pytest.raises(DatasetError, match=message):
        placket.data.open(table).split("train")


def test_verify_names_the_lines_of_the_table(table: Path) -> None:
    (table.parent / "images" / "001" / "0012.jpg").unlink()
    path = table.parent / "table.csv"
    path.write_text(path.read_text() + "0011,p1,red,shirt,t,fit,0,0,20,30\n")
    report = verify(table)
    assert report.images == {"train": 5, "test": 2}
    found = {(problem.kind, problem.line) for problem in report.problems}
    assert {("missing", 3), ("duplicate", 10)} <= found
    assert not report.ok
