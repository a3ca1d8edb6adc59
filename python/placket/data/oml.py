"""Reader of the table of Open-Metric-Learning (``oml.utils.dataframe_format``)."""

from __future__ import annotations

import dataclasses
import os
import re
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from placket.data.columns import Columns, Labels, Texts
from placket.data.dataset import (
    WHOLE_IMAGE,
    Dataset,
    DatasetError,
    Problem,
    Split,
    brief,
    filename_problem,
    is_text,
)
from placket.data.lists import finish, read_csv, report_unmatched
from placket.schema import AttributeSchema

__all__ = ["OmlDataset"]

_NAMES = {"train": "train", "validation": "valid"}
_NEEDED = ("label", "path", "split", "is_query", "is_gallery")
_OPTIONAL = ("category", "x_1", "x_2", "y_1", "y_2", "text", "sequence")
_BOX = ("x_1", "y_1", "x_2", "y_2")
_FLAGS = {"True": True, "1": True, "1.0": True, "False": False, "0": False, "0.0": False}


class OmlDataset(Dataset):
    """A CSV file with these columns in any order, others are not read; a folder has it as ``df.csv``.

    =======================  =====================================================================
    label                    the identity
    path                     of the image, relative to the file's folder
    split                    train, or validation, which is called valid
    is_query, is_gallery     in validation True, 1, False or 0, one of them true; in training empty
    category                 optional: the attribute "category"; empty for no label
    x_1, x_2, y_1, y_2       optional: left, right, top, bottom in whole numbers, or all empty
    text                     optional: a caption
    sequence                 optional: ``Split.sequences``; empty for none
    =======================  =====================================================================
    """

    LOOKED_FOR: ClassVar[str] = "df.csv (Open-Metric-Learning)"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the table.

        Raises:
            DatasetError: it cannot be read, has not the columns, or holds no row.
        """
        place = Path(path)
        self._file = place / "df.csv" if place.is_dir() else place
        self._parts = {split: _Part() for split in _NAMES.values()}
        self._has: set[str] = set()
        # What labels, categories and sequences are called, numbered as they come.
        self._names: dict[str, dict[str, int]] = {column: {} for column in ("label", "category", "sequence")}
        first: dict[str, tuple[str, int]] = {}
        for line, row in read_csv(self._file, _NEEDED, _OPTIONAL):
            self._has = set(row)
            split = _NAMES.get(row["split"])
            if split is None:
                names = ", ".join(_NAMES)
                raise DatasetError(
                    f"{self._file}:{line}: split must be one of {names}, got {brief(row['split'])}"
                )
            self._add(self._parts[split], split, line, row)
            where = first.setdefault(row["path"], (split, line))
            if where != (split, line):
                kind = "duplicate" if where[0] == split else "in two splits"
                message = f"image {row['path']} must be there once, got it in line {where[1]} too"
                self._parts[split].problems.append(Problem(kind, str(self._file), line, message))
        splits = tuple(split for split, part in self._parts.items() if len(part.columns))
        if not splits:
            raise DatasetError(f"{self._file}: table must have a row, got none")
        if len(self._has & set(_BOX)) not in (0, 4):
            got = ", ".join(sorted(self._has & set(_BOX)))
            raise DatasetError(f"{self._file}: table must have all of {', '.join(_BOX)} or none, got {got}")
        categories = sorted(self._names["category"])
        schema = AttributeSchema.of({"category": categories} if categories else {})
        super().__init__(self._file.parent, schema, splits, place)

    @staticmethod
    def recognises(root: str | os.PathLike[str]) -> bool:
        """Return whether the table is in a folder."""
        return (Path(root) / "df.csv").is_file()

    @property
    def identities(self) -> tuple[str, ...]:
        """What ``Split.identities`` counts, the labels as the table has them."""
        return tuple(self._names["label"])

    def _number(self, column: str, row: Mapping[str, str]) -> int:
        """Return the number of a cell's name, -1 for an empty cell or no such column."""
        names, name = self._names[column], row.get(column, "").strip()
        return names.setdefault(name, len(names)) if name else -1

    def _add(self, part: _Part, split: str, line: int, row: Mapping[str, str]) -> None:
        def report(kind: str, message: str) -> None:
            part.problems.append(Problem(kind, str(self._file), line, message))

        problem = filename_problem(row["path"], self._file.parent)
        if problem is not None:
            report("unparsable", problem)
        identity = self._number("label", row)
        if identity < 0:
            report("unparsable", "label must say the identity, got an empty cell")
        flags = [row["is_query"].strip(), row["is_gallery"].strip()]
        roles = [_FLAGS.get(flag) for flag in flags]
        if split == "train" and any(flags) and roles != [False, False]:
            report("out of range", f"is_query and is_gallery must be empty in training, got {brief(flags)}")
        elif split == "valid" and (None in roles or True not in roles):
            report(
                "out of range",
                f"is_query and is_gallery must be True, 1, False or 0, one true, got {brief(flags)}",
            )
        box = self._box(row, report)
        text = row.get("text")
        if text is not None and not is_text(text):
            report("unparsable", f"text must be UTF-8 without zero bytes, got {brief(text)}")
        category = self._number("category", row)
        image = part.columns.add(
            row["path"],
            [(0, category)] if category >= 0 else (),
            line=line,
            identity=identity,
            box=box,
            caption=text,
        )
        part.sequences.append(self._number("sequence", row))
        for role, images in zip(roles, (part.queries, part.gallery), strict=True):
            if role:
                images.append(image)

    def _box(self, row: Mapping[str, str], report: Callable[[str, str], None]) -> tuple[int, ...] | None:
        """Return x0 y0 x1 y1, or None where the table has no boxes."""
        cells = [row[column].strip() for column in _BOX if column in row]
        if len(cells) < 4:
            return None
        if not any(cells):
            return WHOLE_IMAGE
        # pandas writes whole numbers with .0 where some are missing.
        numbers = [re.fullmatch(r"([0-9]{1,9})(\.0)?", cell) for cell in cells]
        x0, y0, x1, y1 = box = tuple(-1 if number is None else int(number[1]) for number in numbers)
        if min(box) < 0:
            report("unparsable", f"x_1, y_1, x_2, y_2 must be whole numbers below 10^9, got {brief(cells)}")
        elif x0 >= x1 or y0 >= y1:
            report("out of range", f"box must have x_1 < x_2 and y_1 < y_2, got {brief(cells)}")
        return box

    def _read(self, name: str) -> tuple[Split, list[Problem]]:
        part = self._parts[name]
        columns, problems = part.columns, [*part.problems]
        split = Split(
            name=name,
            root=self.root,
            schema=self.schema,
            images=len(columns),
            filenames=columns.filenames,
            labels=self._labels(columns),
            boxes=columns.boxes if _BOX[0] in self._has else None,
            identities=columns.identities,
            sequences=np.array(part.sequences) if "sequence" in self._has else None,
            source=str(self._file),
            lines=columns.lines,
        )
        if name != "train":
            queries, gallery = np.array(part.queries), np.array(part.gallery)
            split = dataclasses.replace(split, query_images=queries, gallery_images=gallery)
            report_unmatched(split, problems)
        return finish(split, problems), problems

    def _labels(self, columns: Columns) -> Labels:
        """Return the labels by the numbers of the schema, which has categories by name."""
        found, labels = list(self._names["category"]), columns.labels((len(self._names["category"]),))
        if not found:
            return columns.labels(())
        return labels.renumber([np.array([sorted(found).index(name) for name in found])], labels.values)

    def _read_captions(self, split: Split, problems: list[Problem]) -> Texts | None:
        return self._parts[split.name].columns.captions if "text" in self._has else None


class _Part:
    """What was read of a split."""

    def __init__(self) -> None:
        self.columns = Columns()
        self.queries = array("i")
        self.gallery = array("i")
        self.sequences = array("i")
        self.problems: list[Problem] = []
