"""Reader of a table of images: one CSV file, of whose columns a ``TableLayout`` says what they hold."""

from __future__ import annotations

import dataclasses
import os
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from placket.data.columns import Columns, Labels, Texts
from placket.data.compositions import REPLACE, composed, text_problem
from placket.data.dataset import (
    SPLITS,
    Compositions,
    Dataset,
    DatasetError,
    Problem,
    Split,
    brief,
    check_variety,
    divide,
    filename_problem,
    is_text,
    no_triples,
)
from placket.data.lists import read_csv
from placket.schema import Attribute, AttributeSchema

__all__ = ["TableDataset", "TableLayout"]

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class TableLayout:
    """Which columns of a table hold what, as a YAML file beside the table or anywhere else says it.

    For the articles of H&M, whose images lie under the first three digits of their number::

        table: articles.csv
        image: images/{article_id:.3}/{article_id}.jpg
        attributes: {colour: colour_group_name, pattern: graphical_appearance_name}
        split: split
        identity: product_code
        caption: detail_desc
        least_images: 20
        compositions: {attribute: colour, text: "replace {reference} with {target}"}

    A table has no lists of queries and candidates as the published sets have. Those of "valid" and "test" are
    made from it: for each attribute a labelled image is a query with probability ``query_share``, by a hash
    of its path, and otherwise a candidate, so that they stay the same when rows are added or moved.

    With ``identity`` they have lists of products too, for ``inshop-recall/v1``: each image whose product has
    another image in the split asks (``Split.query_images``), and all images of the split are the gallery
    (``Split.gallery_images``), of which a photo is never its own answer. Where the images of a product are
    its colours, as H&M's articles are, a query finds the product in other colours.
    """

    table: str
    """The file, .csv or .tsv in UTF-8 with a line of column names, relative to ``root``."""
    image: str
    """Path of an image relative to ``root``; ``{column}`` stands for a row's value, ``{column:.3}`` for its
    first three characters."""
    attributes: Mapping[str, str]
    """Attribute name to column."""
    root: str = "."
    """The folder, relative to the YAML file."""
    split: str | None = None
    """Column of the split; without one all images are "train"."""
    splits: Mapping[str, str] = field(default_factory=lambda: {name: name for name in SPLITS})
    """The column's values to "train", "valid" and "test"; rows with other values are left out."""
    identity: str | None = None
    """Column of the product that an image shows."""
    caption: str | None = None
    """Column of a sentence."""
    compositions: Mapping[str, str] | None = None
    """Composed queries to make of images of one identity (``placket.data.composed``): "attribute", what
    shall differ, and "text", where it is not to be "replace {reference} with {target}"."""
    box: Sequence[str] | None = None
    """Columns of x0, y0, x1, y1 in pixels, x1 and y1 exclusive."""
    separator: str | None = None
    """What separates several values of an attribute in one cell."""
    least_images: int = 1
    """Training images that a value must have; others count as no label."""
    query_share: float = 0.2
    """See above, in (0, 1)."""
    place: Path | None = None
    """The YAML file, where it is from one; ``root`` and messages refer to it."""

    def __post_init__(self) -> None:
        """Check the fields; raise DatasetError."""

        def check(good: bool, text: str) -> None:
            if not good:
                raise DatasetError(f"{self.place or 'TableLayout'}: {text}")

        check(
            Path(self.table).suffix in _SEPARATORS, f"table must be a .csv or .tsv file, got {self.table!r}"
        )
        check(bool(self.attributes), "attributes must name at least one column, got none")
        names = [self.table, self.image, self.root, *self.attributes, *self.attributes.values()]
        names += [*self.splits, *self.splits.values(), *(self.box or ())]
        names += [name for name in (self.split, self.identity, self.caption) if name is not None]
        names += [part for pair in (self.compositions or {}).items() for part in pair]
        wrong = [name for name in names if not isinstance(name, str) or not is_text(name)]
        check(not wrong, f"names must be text (put numbers in quotes), got {brief(wrong)}")
        unknown = sorted(set(self.splits.values()) - set(SPLITS))
        check(not unknown, f"splits must lead to {', '.join(SPLITS)}, got {', '.join(unknown)}")
        check(self.separator != "", "separator must have a character, got ''")
        check(self.box is None or len(self.box) == 4, f"box must name four columns, got {self.box}")
        least = brief(self.least_images)
        check(1 <= self.least_images < 10**9, f"least_images must be at least 1 and below 10^9, got {least}")
        check(0 < self.query_share < 1, f"query_share must be in (0, 1), got {self.query_share}")
        if self.compositions is not None:
            self._check_compositions(check)
        fault = _pattern_problem(self.image)
        check(fault is None, f"image must be a pattern with {{column}}s, got {brief(self.image)}: {fault}")

    def _check_compositions(self, check: Callable[[bool, str], None]) -> None:
        asked = self.compositions or {}
        keys = {"attribute"} <= set(asked) <= {"attribute", "text"}
        check(keys, f"compositions must say attribute and may say text, got {brief(dict(asked))}")
        known = ", ".join(self.attributes)
        attribute = asked["attribute"]
        check(
            attribute in self.attributes,
            f"attribute of compositions must be one of {known}, got {attribute!r}",
        )
        fault = text_problem(asked.get("text", REPLACE))
        check(fault is None, f"text of compositions must be {fault}, got {brief(asked.get('text'))}")
        check(self.identity is not None, "identity must be given where compositions are, got none")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> TableLayout:
        """Read a YAML file.

        Raises:
            DatasetError: it cannot be read, or holds something else than these fields.
        """
        path = Path(path)
        try:
            entries: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        except Exception as error:  # PyYAML lets errors of conversions through: of a 13th month, of !!int x
            raise DatasetError(f"{path}: file must be YAML, got {error}") from None
        fields = {f.name: f for f in dataclasses.fields(TableLayout) if f.name != "place"}
        needed = [name for name in fields if name in ("table", "image", "attributes")]
        if not isinstance(entries, dict) or not set(needed) <= set(entries):
            raise DatasetError(f"{path}: file must say {', '.join(needed)}, got {brief(entries)}")
        unknown = [str(key) for key in entries if key not in fields]
        if unknown:
            raise DatasetError(f"{path}: keys must be among {', '.join(fields)}, got {', '.join(unknown)}")
        kinds = {
            "attributes": dict,
            "splits": dict,
            "compositions": dict,
            "box": list,
            "least_images": int,
            "query_share": float,
        }
        for key, value in entries.items():
            kind = kinds.get(key, str)
            if not (isinstance(value, kind) or (value is None and fields[key].default is None)):
                raise DatasetError(f"{path}: {key} must be of type {kind.__name__}, got {brief(value)}")
        return TableLayout(**entries, place=path)

    @property
    def folder(self) -> Path:
        """Where ``table`` and the images are."""
        return Path(self.root) if self.place is None else self.place.parent / self.root

    @property
    def columns(self) -> list[str]:
        """Every column that is read, each once."""
        named = [name for _, name, _, _ in string.Formatter().parse(self.image) if name]
        named += [*self.attributes.values(), *(self.box or ())]
        named += [c for c in (self.split, self.identity, self.caption) if c is not None]
        return list(dict.fromkeys(named))


def _pattern_problem(image: str) -> str | None:
    """Return why a pattern cannot be filled in from the cells of a row."""
    try:
        parts = [*string.Formatter().parse(image)]
        if any(len(digits) > 3 for _, _, form, _ in parts for digits in re.findall(r"\d+", form or "")):
            return "its widths must be below 1000"
        image.format_map({name: "" for _, name, _, _ in parts if name})
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        return str(error)
    return None


class TableDataset(Dataset):
    """A table of images; it is read as a whole when it is opened."""

    def __init__(self, layout: TableLayout) -> None:
        """Read the table.

        Raises:
            DatasetError: it cannot be read, has not the columns, or holds no row of a split.
        """
        file = layout.folder / layout.table
        table = _Table(layout, file)
        for line, row in read_csv(file, layout.columns, separator=_SEPARATORS[file.suffix]):
            table.add(line, row)
        if not table.splits:
            wanted = (
                "a row" if layout.split is None else f"a row whose {layout.split} is in {[*layout.splits]}"
            )
            raise DatasetError(f"{file}: table must have {wanted}, got none")
        super().__init__(layout.folder, table.schema(), table.splits, layout.place)
        self.layout = layout
        self.identities = Texts(table.identities)
        """What ``Split.identities`` counts, as the table has it."""
        self._splits = {name: table.split(name, self.schema) for name in self.splits}
        self._captions = {name: table.columns[name].captions for name in self.splits}

    def _read(self, name: str) -> tuple[Split, list[Problem]]:
        split, problems = self._splits[name]
        return split, list(problems)

    def _read_captions(self, split: Split, problems: list[Problem]) -> Texts | None:
        return None if self.layout.caption is None else self._captions[split.name]

    def _read_compositions(self, split: Split, problems: list[Problem]) -> Compositions | None:
        asked = self.layout.compositions
        return None if asked is None else composed(split, asked["attribute"], asked.get("text", REPLACE))


class _Table:
    """The rows read so far."""

    def __init__(self, layout: TableLayout, file: Path) -> None:
        self.layout = layout
        self.file = file
        self.identities: dict[str, int] = {}
        self.columns = {name: Columns() for name in SPLITS}
        self._problems: dict[str, list[Problem]] = {name: [] for name in SPLITS}
        # For each attribute what its values are called, numbered as they come.
        self._found: list[dict[str, int]] = [{} for _ in layout.attributes]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(name for name in SPLITS if len(self.columns[name]) > 0)

    def schema(self) -> AttributeSchema:
        """Return the attributes with the values that enough training images have."""
        train = self._labels("train")
        least = self.layout.least_images
        named = []
        for a, (name, column) in enumerate(self.layout.attributes.items()):
            counts = train.counts(a)
            values = sorted(value for value, number in self._found[a].items() if counts[number] >= least)
            if not values:
                raise DatasetError(
                    f"{self.file}: column '{column}' must have a value with {least} training "
                    "images or more, got none; lower least_images or leave the attribute out"
                )
            named.append(Attribute(name, tuple(values)))
        return AttributeSchema(tuple(named))

    def _labels(self, split: str) -> Labels:
        """Return the labels of a split by the numbers of ``_found``."""
        return self.columns[split].labels(tuple(len(values) for values in self._found))

    def add(self, line: int, row: Mapping[str, str]) -> None:
        """Take a row, unless it is of no split."""
        layout = self.layout
        split = "train" if layout.split is None else layout.splits.get(row[layout.split])
        if split is None:
            return

        def report(kind: str, message: str) -> None:
            self._problems[split].append(Problem(kind, str(self.file), line, message))

        filename = layout.image.format_map(row)
        problem = filename_problem(filename, layout.folder)
        if problem is not None:
            report("unparsable", problem)
        labels = []
        for a, column in enumerate(layout.attributes.values()):
            cell, found = row[column], self._found[a]
            cells = [cell] if layout.separator is None else cell.split(layout.separator)
            values = dict.fromkeys(filter(None, (value.strip() for value in cells)))
            labels += [(a, found.setdefault(value, len(found))) for value in values]
        identity = -1
        if layout.identity is not None and row[layout.identity]:
            identity = self.identities.setdefault(row[layout.identity], len(self.identities))
        corners = None
        if layout.box is not None:
            box = [row[column].strip() for column in layout.box]
            if not all(cell.isascii() and cell.isdigit() and len(cell) <= 9 for cell in box):
                report("unparsable", f"box must be four whole numbers below 10^9, got {brief(box)}")
                box = ["0", "0", "1", "1"]
            x0, y0, x1, y1 = corners = [int(cell) for cell in box]
            if x0 >= x1 or y0 >= y1:
                report("out of range", f"box must have x0 < x1 and y0 < y1, got {x0} {y0} {x1} {y1}")
        self.columns[split].add(
            filename,
            labels,
            line=line,
            identity=identity,
            box=corners,
            caption=None if layout.caption is None else row[layout.caption],
        )

    def split(self, name: str, schema: AttributeSchema) -> tuple[Split, list[Problem]]:
        """Return a split and what is wrong with its rows."""
        columns = self.columns[name]
        kept = [{value: v for v, value in enumerate(a.values)} for a in schema.attributes]
        numbers = [
            np.array([values.get(value, -1) for value in found], dtype=np.int64)
            for values, found in zip(kept, self._found, strict=True)
        ]
        labels = self._labels(name).renumber(numbers, schema.value_counts)
        problems = list(self._problems[name])
        first: dict[str, int] = {}
        for filename, line in zip(columns.filenames, columns.lines.tolist(), strict=True):
            if first.setdefault(filename, line) != line:
                message = f"image {filename} must be there once, got it in line {first[filename]} too"
                problems.append(Problem("duplicate", str(self.file), line, message))
        problems += check_variety(labels, schema, str(self.file))
        queries, candidates = no_triples(), no_triples()
        identities = None if self.layout.identity is None else columns.identities
        asked = offered = None
        if name != "train":
            queries, candidates = divide(columns.filenames, labels, self.layout.query_share)
            if identities is not None:
                asked, offered = _with_others(identities), np.arange(len(columns), dtype=np.int32)
        split = Split(
            name=name,
            root=self.layout.folder,
            schema=schema,
            images=len(columns),
            filenames=columns.filenames,
            labels=labels,
            boxes=None if self.layout.box is None else columns.boxes,
            queries=queries,
            candidates=candidates,
            warnings=tuple(str(problem) for problem in problems if problem.severity == "warning"),
            identities=identities,
            query_images=asked,
            gallery_images=offered,
            source=str(self.file),
            lines=columns.lines,
        )
        return split, problems


def _with_others(identities: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the images whose product, which is known, has another image."""
    _, number, counts = np.unique(identities, return_inverse=True, return_counts=True)
    return np.flatnonzero((identities >= 0) & (counts[number] > 1)).astype(np.int32)
