from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from placket.data import DatasetError, verify
from placket.data.verify import near_pairs

Photograph = Callable[..., NDArray[np.uint8]]


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
        ("leak", "filenames_test.txt", 3),
        ("out of range", "label_test.txt", 2),
        ("unparsable", "query_test.txt", 2),
        ("out of range", "candidate_test.txt", 1),
        ("out of range", "regions_test.txt", 1),
    }
    duplicates = [p.message for p in report.problems if p.kind in ("duplicate", "leak")]
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
    assert "warning: duplicate (1)" in table
    assert "error: leak (1)" in table
    assert f"  {layout / 'query_test.txt'}:2: line must be 'id attribute value', got 'zero one two'" in table
    assert table.endswith("not usable as it is")


def test_warnings_leave_it_usable(layout: Path) -> None:
    shutil.copy(layout / "img" / "0.jpg", layout / "img" / "1.jpg")
    report = verify(layout)
    assert [p.severity for p in report.problems] == ["warning"]
    assert report.ok


def test_a_file_of_two_splits_makes_scores_wrong(layout: Path) -> None:
    names = (layout / "filenames_test.txt").read_text().replace("img/7.jpg", "img/1.jpg")
    (layout / "filenames_test.txt").write_text(names)
    (problem,) = verify(layout).problems
    assert (problem.kind, problem.severity, problem.line) == ("in two splits", "error", 2)
    assert "image img/1.jpg must be in one split, got it in" in problem.message
    assert "filenames_train.txt:2 (img/1.jpg) too" in problem.message


@pytest.mark.parametrize("change", ["quality", "size"])
def test_the_same_photograph_saved_again_is_told(layout: Path, photograph: Photograph, change: str) -> None:
    pixels = Image.fromarray(photograph(300, 200, 5))
    pixels.save(layout / "img/1.jpg", quality=90)
    again = pixels if change == "quality" else pixels.resize((140, 210), Image.Resampling.LANCZOS)
    again.save(layout / "img/7.jpg", quality=80)
    (problem,) = verify(layout).problems
    assert (problem.kind, problem.severity, problem.line) == ("near duplicate", "warning", 2)
    assert "img/7.jpg looks like the same photograph as" in problem.message
    assert "(img/1.jpg)" in problem.message


def test_near_pairs_are_all_pairs_below_the_limit() -> None:
    """Against the definition, over more than one block, with pairs just above and below it."""
    rng = np.random.default_rng(0)
    thumbnails = rng.integers(20, 230, (1500, 16, 16, 3), dtype=np.uint8)
    for copy, original, noise in ((1400, 3, 2), (1401, 1100, 4), (700, 699, 3), (701, 5, 0)):
        changed = thumbnails[original] + rng.integers(-noise, noise + 1, (16, 16, 3))
        thumbnails[copy] = changed.astype(np.uint8)
    flat = thumbnails.reshape(1500, -1).astype(np.float64)
    expected = []
    for i in range(1500):
        differences = np.sqrt(((flat[i + 1 :] - flat[i]) ** 2).mean(1))
        expected += [(i, i + 1 + int(j)) for j in np.flatnonzero(differences < 2.5)]
    assert near_pairs(thumbnails) == expected
    assert set(expected) == {(3, 1400), (699, 700), (5, 701)}


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
