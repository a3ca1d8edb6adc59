from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from placket.data import DatasetError, verify


def test_a_whole_data_set_is_ok(layout: Path) -> None:
    report = verify(layout)
    assert report.ok
    assert report.problems == ()
    assert report.images == {"train": 6, "test": 3}
    assert report.table() == f"{layout}: 9 images (train 6, test 3)\nok"


def test_everything_that_is_wrong_is_found_with_file_and_line(layout: Path) -> None:
    (layout / "img" / "1.jpg").unlink()
    whole = (layout / "img" / "2.jpg").read_bytes()
    (layout / "img" / "2.jpg").write_bytes(whole[: len(whole) // 2])
    shutil.copy(layout / "img" / "0.jpg", layout / "img" / "4.jpg")
    # The same pixels in another file format, in another split.
    Image.open(layout / "img" / "0.jpg").save(layout / "img" / "8.jpg", format="PNG")
    (layout / "label_test.txt").write_text("0 0 0 1 0\n1 0 1 1 7\n2 0 0 1 1\n")
    (layout / "query_test.txt").write_text("0 0 0\nzero one two\n")
    (layout / "candidate_test.txt").write_text("5 0 0\n")
    (layout / "regions_test.txt").write_text("0 0 5 5 5 9\n")

    report = verify(layout)
    assert not report.ok
    found = {(p.kind, Path(p.file).name, p.line) for p in report.problems}
    assert found == {
        ("missing", "filenames_train.txt", 2),
        ("damaged", "filenames_train.txt", 3),
        ("duplicate", "filenames_train.txt", 5),
        ("duplicate", "filenames_test.txt", 3),
        ("out of range", "label_test.txt", 2),
        ("unparsable", "query_test.txt", 2),
        ("out of range", "candidate_test.txt", 1),
        ("out of range", "regions_test.txt", 1),
    }
    duplicates = [p.message for p in report.problems if p.kind == "duplicate"]
    assert all(
        "got the same pixels in" in text and "filenames_train.txt:1 (img/0.jpg)" in text
        for text in duplicates
    )
    missing = next(row for row in report.as_dicts() if row["kind"] == "missing")
    assert missing.keys() == {"severity", "kind", "file", "line", "message"}
    assert "img/1.jpg: No such file or directory" in missing["message"]
    json.dumps(report.as_dicts())
    table = report.table()
    assert "error: out of range (3)" in table
    assert "warning: duplicate (2)" in table
    assert f"  {layout / 'query_test.txt'}:2: line must be 'id attribute value', got 'zero one two'" in table
    assert table.endswith("not usable as it is")


def test_warnings_leave_it_usable(layout: Path) -> None:
    shutil.copy(layout / "img" / "0.jpg", layout / "img" / "1.jpg")
    report = verify(layout)
    assert [p.severity for p in report.problems] == ["warning"]
    assert report.ok


def test_images_of_equal_bytes_and_other_shape_differ(layout: Path) -> None:
    for i, shape in enumerate([(4, 6, 3), (6, 4, 3)]):
        Image.fromarray(np.full(shape, 7, np.uint8)).save(layout / "img" / f"{i}.jpg", format="PNG")
    assert verify(layout).problems == ()


def test_paths_outside_are_reported_and_not_opened(layout: Path) -> None:
    names = (layout / "filenames_train.txt").read_text().replace("img/0.jpg", "../secret.jpg")
    (layout / "filenames_train.txt").write_text(names)
    (problem,) = verify(layout).problems
    assert (problem.kind, problem.line) == ("unparsable", 1)
    assert "path must lie inside" in problem.message


def test_the_table_is_short(layout: Path) -> None:
    (layout / "query_test.txt").write_text("x\n" * 50)
    table = verify(layout).table()
    assert "unparsable (50)" in table
    assert "  and 30 more (--json lists all)" in table


def test_no_data_set_at_all(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="must hold"):
        verify(tmp_path)
