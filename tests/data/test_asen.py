from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

import placket.data
from placket.data import DatasetError, Record


def test_a_data_set_is_read_as_written(layout: Path) -> None:
    data = placket.data.open(layout)
    assert data.splits == ("train", "test")
    assert data.schema.names == ("sleeve", "collar")
    assert data.schema["sleeve"].values == ("none", "short", "long")
    assert len(data) == 9

    train = data.split("train")
    assert len(train) == 6
    assert train.filenames[2] == "img/2.jpg"
    assert train.paths[2] == str(layout / "img" / "2.jpg")
    assert [train.labels[i] for i in (2, 3, 4)] == [[(0, 2)], [(0, 0), (0, 1), (1, 1)], [(1, 0)]]
    assert train.labels.begin.tolist() == [0, 2, 4, 5, 8, 9, 11]
    assert train.labels.counts(0).tolist() == [2, 3, 1]
    assert (train.labels.begin.dtype, train.labels.value.dtype) == (np.int8, np.int8)
    assert train.labels.values == (3, 2)
    assert train.boxes is not None
    assert train.boxes[1].tolist() == [1, 2, 21, 33]
    assert train.queries.shape == train.candidates.shape == (0, 3)
    assert train.warnings == ()

    test = data.split("test")
    assert test.queries.tolist() == [[0, 0, 0], [0, 1, 0]]
    assert test.candidates.tolist() == [[1, 0, 1], [1, 1, 1], [2, 0, 0], [2, 1, 1]]
    regions = data.regions("test")
    assert regions is not None
    assert regions.tolist() == [[0, 0, 1, 2, 9, 9], [0, 0, 20, 2, 29, 9], [1, 1, 3, 3, 8, 9]]
    assert data.regions("train") is data.captions("train") is None
    assert data.captions("test") == ("a plain top", "a v neck", "another")
    records = list(data.records)
    assert len(records) == 9
    several = {"sleeve": ("none", "short"), "collar": ("v",)}
    assert records[3] == Record("train", 3, "img/3.jpg", several, (3, 2, 23, 33))


def write(root: Path, stem: str, *lines: str) -> None:
    (root / f"{stem}.txt").write_text("\n".join(lines) + "\n")


NINE = "9" * 10


@pytest.mark.parametrize(
    ("stem", "line", "content", "message"),
    [
        ("label_test", 2, "1 0", "line must be 'id attribute value attribute value ...', got '1 0'"),
        ("label_test", 1, "0 0 x", "line must be 'id attribute value attribute value ...', got '0 0 x'"),
        ("label_test", 1, "0 0 -1", "line must be 'id attribute value attribute value ...', got '0 0 -1'"),
        ("label_test", 3, "2 0 ²", "line must be 'id attribute value attribute value ...', got '2 0 ²'"),
        ("label_test", 3, "", "line must be 'id attribute value attribute value ...', got ''"),
        ("label_test", 2, "1 2 0", "attribute must be from 0 to 1, got 2"),
        ("label_test", 2, "1 1 2", "value of attribute 1 must be from 0 to 1, got 2"),
        ("label_test", 2, "3 1 1", "id must be from 0 to 2, got 3"),
        ("label_test", 2, "0 1 1", "id must occur once, got 0 in line 1 too"),
        ("label_test", 2, "1 1 1 1 1", "labels must differ, got [1, 1, 1, 1]"),
        ("query_test", 2, "0 1", "line must be 'id attribute value', got '0 1'"),
        ("query_test", 2, "0 1 0 0", "line must be 'id attribute value', got '0 1 0 0'"),
        ("query_test", 1, "7 1 0", "id must be from 0 to 2, got 7"),
        ("query_test", 1, f"{NINE} 1 0", f"line must be 'id attribute value', got '{NINE} 1 0'"),
        ("candidate_test", 4, "2 2 0", "attribute must be from 0 to 1, got 2"),
        ("candidate_test", 3, "2 0 3", "value of attribute 0 must be from 0 to 2, got 3"),
        ("bbox_test", 2, "1 1 40", "line must be 'x0 y0 x1 y1', got '1 1 40'"),
        ("bbox_test", 3, "9 2 9 30", "box must have x0 < x1 and y0 < y1, got 9 2 9 30"),
        ("regions_test", 3, "1 2 3 3 8 9", "attribute must be from 0 to 1, got 2"),
        ("regions_test", 1, "3 1 3 3 8 9", "id must be from 0 to 2, got 3"),
        ("captions_test", 2, "a v neck", "line must be an id below 3 that occurs once, a tab and a sentence"),
        ("captions_test", 3, "1\tagain", "line must be an id below 3 that occurs once, a tab and a sentence"),
        ("filenames_test", 2, "", "line must be the path of an image, got ''"),
        ("filenames_test", 2, "/etc/passwd", "path must lie inside "),
        ("filenames_test", 3, "img/../../secret.jpg", "path must lie inside "),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(
    layout: Path, stem: str, line: int, content: str, message: str
) -> None:
    path = layout / f"{stem}.txt"
    lines = path.read_text().split("\n")
    lines[line - 1] = content
    path.write_text("\n".join(lines))
    data = placket.data.open(layout)
    with pytest.raises(DatasetError, match=f"^{re.escape(f'{path}:{line}: {message}')}"):
        (data.split("test"), data.regions("test"), data.captions("test"))
    assert len(data.split("train")) == 6  # a split that is right can be used


def test_all_errors_are_counted(layout: Path) -> None:
    write(layout, "query_test", "9 0 0", "0 0 0", "0 9 9")
    with pytest.raises(
        DatasetError, match=r"query_test\.txt:.* \(and 1 more: placket data verify .*garments\)$"
    ):
        placket.data.open(layout).split("test")


@pytest.mark.parametrize(
    ("stem", "message"),
    [
        ("bbox_test", "list must have 3 lines, one for each image, got 1"),
        ("captions_test", "list must have 3 captions"),
    ],
)
def test_lists_that_are_too_short(layout: Path, stem: str, message: str) -> None:
    path = layout / f"{stem}.txt"
    path.write_text(path.read_text().split("\n")[0] + "\n")
    data = placket.data.open(layout)
    with pytest.raises(DatasetError, match=f"^{re.escape(str(path))}: {message}"):
        (data.split("test"), data.captions("test"))


def test_an_empty_split(layout: Path) -> None:
    (layout / "filenames_test.txt").write_text("")
    (layout / "bbox_test.txt").unlink()
    message = r"filenames_test\.txt: split 'test' must have at least one image, got none; fill the list"
    for stem in ("label_test", "query_test", "candidate_test"):
        (layout / f"{stem}.txt").write_text("")
    with pytest.raises(DatasetError, match=message):
        placket.data.open(layout).split("test")


def test_text_that_cannot_be_read(layout: Path) -> None:
    (layout / "filenames_test.txt").write_bytes(b"img/\xff.jpg\n")
    with pytest.raises(DatasetError, match=r"filenames_test\.txt: file must be readable text in UTF-8"):
        placket.data.open(layout).split("test")
    (layout / "filenames_test.txt").unlink()
    (layout / "filenames_test.txt.gz").write_bytes(gzip.compress(b"img/6.jpg\n" * 99)[:-9])
    with pytest.raises(DatasetError, match=r"filenames_test\.txt\.gz: file must be readable text in UTF-8"):
        placket.data.open(layout).split("test")


def test_an_attribute_with_one_value_is_a_warning(layout: Path) -> None:
    write(layout, "label_train", *(f"{i} 0 1 1 {i % 2}" for i in range(6)))
    (warning,) = placket.data.open(layout).split("train").warnings
    assert warning == (
        f"{layout / 'label_train.txt'}: attribute 'sleeve' must have images of two values to be learnt, "
        "got only 'short'; label other values or leave the attribute out"
    )


def test_lists_without_images(layout: Path) -> None:
    """As the published lists come: compressed, some absent, meta.json one folder up, line ends of Windows."""
    names = (layout / "filenames_test.txt").read_bytes()
    (layout / "filenames_test.txt.gz").write_bytes(gzip.compress(names))
    (layout / "filenames_test.txt").unlink()
    (layout / "filenames_train.txt").unlink()
    (layout / "bbox_train.txt").unlink()
    query = layout / "query_test.txt"
    query.write_bytes(query.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    meta = json.loads((layout / "meta.json").read_text())
    del meta["garments"]["VALUES"]
    (layout / "meta.json").unlink()
    (layout.parent / "meta.json").write_text(json.dumps(meta | {"others": {}}))

    data = placket.data.open(layout)
    assert data.schema["collar"].values == ("0", "1")
    assert data.split("test").filenames == ("img/6.jpg", "img/7.jpg", "img/8.jpg")
    assert data.split("test").queries.tolist() == [[0, 0, 0], [0, 1, 0]]
    train = data.split("train")
    assert (len(train), train.filenames) == (6, ())
    assert next(train.records).filename == ""
    with pytest.raises(
        DatasetError, match=r"split 'train' must have filenames_train\.txt where images are needed"
    ):
        _ = train.paths


def test_labels_numbered_across_attributes_are_renumbered(layout: Path) -> None:
    """Attributes from 1; 4, 1 and 0 stand for values 0, 1 and 2 of sleeve, 3 and 2 for 0 and 1 of collar."""
    write(layout, "filenames_test", *(f"img/{i}.jpg" for i in range(5)))
    write(layout, "bbox_test", *["0 0 9 9"] * 5)
    write(layout, "label_test", "0 1 4 2 3", "1\t1\t1\t2\t2\t\t", "2 1 1 1 4 2 2", "3 1 0", "4 1 1")
    write(layout, "query_test", "0 0 0", "0 1 0")
    write(layout, "candidate_test", "1 0 1", "1 1 1", "2 0 0", "2 0 1", "2 1 1")
    split = placket.data.open(layout).split("test")
    expected = [[(0, 0), (1, 0)], [(0, 1), (1, 1)], [(0, 1), (0, 0), (1, 1)], [(0, 2)], [(0, 1)]]
    assert [split.labels[i] for i in range(5)] == expected
    (warning,) = split.warnings
    assert warning == (
        f"{layout / 'label_test.txt'}: labels are numbered across attributes; the query and candidate lists "
        "tell the numbers of 4 of 5 values, and the others got those left over"
    )

    # A list that the labels contradict, or none to tell the numbers by: the labels are out of range then.
    write(layout, "candidate_test", "3 0 0")
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"label_test\.txt:1: value of attribute 1 must be .*, got 4"):
            placket.data.open(layout).split("test")
        (layout / "query_test.txt").unlink(missing_ok=True)
        (layout / "candidate_test.txt").unlink(missing_ok=True)


def test_an_id_does_not_claim_images_that_no_list_has(layout: Path) -> None:
    (layout / "filenames_test.txt").unlink()
    write(layout, "label_test", "0 0 0", "1 0 1", "123456789 0 2")
    expected = r"label_test\.txt:3: id without filenames_test\.txt must be from 0 to 89, got 123456789"
    with pytest.raises(DatasetError, match=expected):
        placket.data.open(layout).split("test")


def test_what_is_no_data_set_says_what_is_missing(tmp_path: Path, layout: Path) -> None:
    with pytest.raises(DatasetError, match="absent: data set must be a folder or a file, got none there"):
        placket.data.open(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DatasetError, match=r"empty: data set must hold the files of .*: filenames_\{split\}.txt, label"
    ):
        placket.data.open(tmp_path / "empty")
    with pytest.raises(DatasetError, match="split must be one of train, test, got 'valid'"):
        placket.data.open(layout).split("valid")


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (None, "file must name the attributes, got none here or one up"),
        ("{", "file must be JSON, got "),
        ("[]", "file must map a data set's name to its attributes"),
        ('{"a": {}, "b": {}}', "folder's name must be one of a, b, got 'garments'"),
        ('{"a": {"ATTRIBUTES": "x"}}', "ATTRIBUTES must be a list of names, got 'x'"),
        ('{"a": {"ATTRIBUTES": ["x"]}}', "ATTRIBUTES_NUM of 'x' must be positive, got None"),
        (
            '{"a": {"ATTRIBUTES": ["x"], "ATTRIBUTES_NUM": {"x": true}}}',
            "ATTRIBUTES_NUM of 'x' must be positive",
        ),
        (
            '{"a": {"ATTRIBUTES": ["x"], "ATTRIBUTES_NUM": {"x": 4294967296}}}',
            "ATTRIBUTES_NUM of 'x' must be at most 100000, got 4294967296",
        ),
        pytest.param(100_000 * "[", "file must be JSON, got maximum recursion depth exceeded", id="deep"),
        (
            '{"a": {"ATTRIBUTES": ["x"], "ATTRIBUTES_NUM": {"x": 2}, "VALUES": {"x": ["y"]}}}',
            r"VALUES of 'x' must be 2 names, got \['y'\]",
        ),
        (
            '{"a": {"ATTRIBUTES": ["x", "x"], "ATTRIBUTES_NUM": {"x": 2}}}',
            "schema: .*different names, got 'x' twice",
        ),
    ],
)
def test_meta_is_checked(layout: Path, meta: str | None, message: str) -> None:
    path = layout / "meta.json"
    if meta is None:
        path.unlink()
    else:
        path.write_text(meta)
    with pytest.raises(DatasetError, match=f"^{re.escape(str(path))}: {message}"):
        placket.data.open(layout)
