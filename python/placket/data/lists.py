"""What the readers of layouts share: lists of lines, JSON files, and how a split is finished."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from placket.data.columns import Texts
from placket.data.dataset import (
    Compositions,
    DatasetError,
    Problem,
    Split,
    brief,
    check_variety,
    divide,
    is_text,
)

__all__ = [
    "CountedList",
    "JsonList",
    "Queries",
    "TextList",
    "find_images",
    "finish",
    "is_captions",
    "number_of",
    "positives",
    "read_csv",
    "read_json",
    "report_unmatched",
    "whole_number",
]

# What browsers show; other files are no images of a set.
SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class TextList:
    """The lines of a text file, which may be compressed, and where to tell what is wrong with them.

    They are read as they are asked for: the attribute list of DeepFashion has most of a gigabyte.
    """

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        self.file = str(path)
        self.path = path
        self.problems = problems

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Yield line numbers, from 1, and lines."""
        try:
            opened = gzip.open if self.path.suffix == ".gz" else open
            with opened(self.path, "rt", encoding="utf-8", newline="\n") as lines:
                for line, text in enumerate(lines, start=1):
                    yield line, text.removesuffix("\n").removesuffix("\r")
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            self.report("unreadable", None, f"file must be readable text in UTF-8, got {error}")

    def report(self, kind: str, line: int | None, message: str) -> None:
        self.problems.append(Problem(kind, self.file, line, message))


class CountedList(TextList):
    """A list as DeepFashion has them: the number of rows, a line of column names, the rows.

    Blank lines hold nothing.
    """

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Yield line numbers and rows."""
        count: int | None = None
        found = last = 0
        for line, text in super().__iter__():
            last = line
            if line == 1:
                count = whole_number(text.strip())
                if count is None:
                    message = f"first line must be the number of rows, got {brief(text)}"
                    self.report("unparsable", line, message)
            elif line > 2 and text.strip():
                found += 1
                yield line, text
        if last == 0 and not any(problem.file == self.file for problem in self.problems):
            self.report("unparsable", None, "list must begin with the number of rows, got an empty file")
        if count is not None and count != found:
            message = f"list must have {count} rows, as its first line says, got {found}"
            self.report("unparsable", None, message)

    def words(self, pattern: str) -> Iterator[tuple[int, list[str]]]:
        """Yield line numbers and the words of rows that have as many as the pattern."""
        length = len(pattern.split())
        for line, text in self:
            words = text.split()
            if len(words) == length and is_text(text):
                yield line, words
            else:
                self.report("unparsable", line, f"line must be '{pattern}', got {brief(text)}")

    def box(self, line: int, words: list[str]) -> tuple[int, int, int, int] | None:
        """Return the numbers of x0 y0 x1 y1, or None after telling what is wrong with them."""
        numbers = [whole_number(word) for word in words]
        x0, y0, x1, y1 = (-1 if number is None else number for number in numbers)
        if min(x0, y0, x1, y1) < 0:
            self.report("unparsable", line, f"box must be four whole numbers, got {brief(' '.join(words))}")
            return None
        if x0 >= x1 or y0 >= y1:
            message = f"box must have x0 < x1 and y0 < y1, got {x0} {y0} {x1} {y1}"
            self.report("out of range", line, message)
            return None
        return x0, y0, x1, y1


class JsonList(TextList):
    """The entries of a JSON list, and where to tell what is wrong with them."""

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Yield the entries, numbered from 1."""
        yield from enumerate(read_json(self.path, list, self.problems), start=1)


class Queries:
    """Collects queries of an image with a text one by one."""

    def __init__(self) -> None:
        self._columns = {name: array("i") for name in ("reference", "target", "begin", "category", "subset")}
        self._columns["begin"].append(0)
        self._captions = Texts()

    def add(
        self,
        reference: int,
        target: int,
        captions: Sequence[str],
        *,
        category: int = -1,
        subset: Sequence[int] = (),
    ) -> None:
        """Add a query; -1 stands for a target that is withheld, and for no category."""
        for caption in captions:
            self._captions.native.append(caption)
        row = {"reference": reference, "target": target, "begin": len(self._captions), "category": category}
        for name, value in row.items():
            self._columns[name].append(value)
        self._columns["subset"].extend(subset)

    def compositions(self) -> Compositions:
        columns = {name: np.array(column) for name, column in self._columns.items()}
        length = len(columns["reference"])
        return Compositions(
            reference=columns["reference"],
            target=columns["target"],
            captions=self._captions,
            begin=columns["begin"],
            category=columns["category"] if columns["category"].max(initial=-1) >= 0 else None,
            subset=columns["subset"].reshape(length, -1) if len(columns["subset"]) else None,
        )


def whole_number(word: str) -> int | None:
    """Return a number that is not negative and has at most nine digits, so that it fits in 32 bits."""
    return int(word) if word.isascii() and word.isdigit() and len(word) <= 9 else None


def positives(text: str, columns: int) -> NDArray[np.int64] | None:
    """Return the columns that are 1 of numbers that are each 1, 0 or -1; None where the text is no such row.

    One pass over bytes: the attribute list of DeepFashion has 289 million numbers.
    """
    letters = np.frombuffer(f" {text}  ".encode(), np.uint8)
    space = (letters == ord(" ")) | (letters == ord("\t"))
    first = np.flatnonzero(space[:-1] & ~space[1:]) + 1
    negative = letters[first] == ord("-")
    digit = first + negative
    one = letters[digit] == ord("1")
    whole = one | ((letters[digit] == ord("0")) & ~negative)
    if len(first) != columns or not whole.all() or not space[digit + 1].all():
        return None
    return np.flatnonzero(one & ~negative)


def read_json(path: Path, kind: type[list[Any]] | type[dict[str, Any]], problems: list[Problem]) -> Any:
    """Return the list or object a file holds; an empty one after telling what is wrong with it."""
    try:
        data = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_object)
    except (OSError, UnicodeDecodeError) as error:
        message = f"file must be readable text in UTF-8, got {error}"
        problems.append(Problem("unreadable", str(path), None, message))
        return kind()
    except (ValueError, RecursionError) as error:
        problems.append(Problem("unparsable", str(path), None, f"file must be JSON, got {error}"))
        return kind()
    if not isinstance(data, kind):
        what = "a list" if kind is list else "an object"
        message = f"file must hold {what}, got {brief(data)}"
        problems.append(Problem("unparsable", str(path), None, message))
        return kind()
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that comes twice, of which Python would keep the last."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError(f"an object with a key twice: {brief([key for key, _ in pairs])}")
    return entries


def is_captions(value: object) -> TypeGuard[list[str]]:
    """Return whether a value of JSON is a list of one sentence or more."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) and is_text(v) for v in value)


def number_of(image: object, images: Mapping[str, int]) -> int:
    """Return the number of an image named by a value of JSON, -1 where it names none."""
    return images.get(image, -1) if isinstance(image, str) else -1


def read_csv(
    path: Path, needed: Sequence[str], optional: Sequence[str] = (), separator: str = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line each row of a table ends in, and its cells by column; of others than these, none.

    Raises:
        DatasetError: the table cannot be read, or has not each of the needed columns once.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator, strict=True)
            header = next(reader, [])
            if any(header.count(c) != 1 for c in needed) or any(header.count(c) > 1 for c in optional):
                raise DatasetError(
                    f"{path}: table must have each of the columns {', '.join(needed)} once, got "
                    f"{', '.join(header)}"
                )
            places = {column: header.index(column) for column in (*needed, *optional) if column in header}
            for cells in reader:
                if len(cells) != len(header):
                    raise DatasetError(
                        f"{path}:{reader.line_num}: row must have {len(header)} cells, got {len(cells)}"
                    )
                yield reader.line_num, {column: cells[place] for column, place in places.items()}
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: table must be readable text in UTF-8, got {error}") from None
    except csv.Error as error:
        raise DatasetError(f"{path}:{reader.line_num}: row must be CSV, got {error}") from None


def find_images(root: Path, folders: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Return the first of the folders that holds images, else the first, and its images by their stems."""
    for folder in folders:
        place = root / folder
        names = (entry.name for entry in place.iterdir()) if place.is_dir() else iter(())
        images = {name.rpartition(".")[0]: name for name in names if name.lower().endswith(SUFFIXES)}
        if images:
            return folder, images
    return folders[0], {}


def finish(split: Split, problems: list[Problem]) -> Split:
    """Check the labels of a split and fill in its warnings and, outside training, its lists.

    Queries and candidates are made as for a table (``TableLayout``).
    """
    if len(split.labels.value):
        problems += check_variety(split.labels, split.schema, split.source)
    warnings = tuple(str(problem) for problem in problems if problem.severity == "warning")
    split = dataclasses.replace(split, warnings=warnings)
    if split.name == "train" or not len(split.labels.value):
        return split
    queries, candidates = (rows.astype(np.int32) for rows in divide(split.filenames, split.labels))
    return dataclasses.replace(split, queries=queries, candidates=candidates)


def report_unmatched(split: Split, problems: list[Problem]) -> None:
    """Warn of queries whose identity no image of the gallery has."""
    identities, queries, gallery = split.identities, split.query_images, split.gallery_images
    assert identities is not None
    assert queries is not None
    assert gallery is not None
    for image in queries[~np.isin(identities[queries], identities[gallery])].tolist():
        message = f"gallery must have an image of the product of {split.filenames[image]}, got none"
        problems.append(Problem("unmatched", split.source, split.line(image), message))
