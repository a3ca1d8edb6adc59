"""Readers of DeepFashion (Liu et al., CVPR 2016): attribute prediction, in-shop, consumer-to-shop.

A benchmark is a folder as its archives unpack: lists in ``Anno/`` and ``Eval/``, images in ``img/`` or
``Img/img/``. Each list begins with the number of its rows and a line of column names. The partition list says
which images there are, in their order; images that only other lists name are in no split. "val" is called
valid. Boxes are taken as they are, with x2 and y2 exclusive (the lists do not say).

The lists hold all splits, so what is wrong in one of them is told with every split.
"""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from placket.data.columns import Labels, Texts
from placket.data.dataset import (
    SPLITS,
    Dataset,
    DatasetError,
    Problem,
    Split,
    brief,
    filename_problem,
    raise_first,
)
from placket.data.lists import CountedList, finish, positives, report_unmatched, whole_number
from placket.schema import AttributeSchema

__all__ = ["AttributePredictionDataset", "ConsumerToShopDataset", "InShopDataset"]

_PARTITION = "Eval/list_eval_partition.txt"
_TYPES = ("texture", "fabric", "shape", "part", "style")
_CLOTHES = ("upper-body", "lower-body", "full-body")
_POSES = ("frontal", "side", "back", "zoom-out", "zoom-in", "stand-alone")
_SHOP, _CONSUMER = 0, 1
_T = TypeVar("_T")


class _Values:
    """Attributes and their values in the making; a column is a value of an attribute, as they are added."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.columns: list[tuple[int, int]] = []

    def add(self, attribute: str, values: Iterable[str]) -> int:
        """Add values and return the first column; a name that comes again gets a number: "lace (2)"."""
        first = len(self.columns)
        names = self.names.setdefault(attribute, [])
        number = list(self.names).index(attribute)
        for value in values:
            name, again = value, 1
            while name in names:
                again += 1
                name = f"{value} ({again})"
            self.columns.append((number, len(names)))
            names.append(name)
        return first


class _Rows:
    """The images of a partition list in its order, and what the other lists say of them."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self.lines = array("i")
        self.statuses = array("b")
        self.items = array("i")
        self.domains = array("b")
        self.item_statuses = array("b")
        self.label_rows = array("i")
        self.label_columns = array("i")
        self.boxes: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.lines)

    def label(self, row: int, columns: Iterable[int]) -> None:
        for column in columns:
            self.label_rows.append(row)
            self.label_columns.append(column)


class _DeepFashion(Dataset):
    """One of the benchmarks: the partition is read when it is opened, the rest when a split is asked for."""

    _HINTS: ClassVar[tuple[str, ...]]
    """Lists that only this benchmark has; the others are beside them."""
    LOOKED_FOR: ClassVar[str]
    _STATUSES: ClassVar[dict[str, str]] = {"train": "train", "val": "valid", "test": "test"}
    """What the partition calls the splits."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Read the partition and the names of attributes.

        Raises:
            DatasetError: they cannot be read, or no image is in a split.
        """
        path = Path(root)
        found = [path / hint for hint in self._HINTS if (path / hint).is_file()]
        if not found:
            raise DatasetError(f"{path}: data set must hold {' or '.join(self._HINTS)}, got neither")
        self._anno = found[0].parent
        self._prefix = "Img/" if (path / "Img" / "img").is_dir() and not (path / "img").is_dir() else ""
        self._problems: list[Problem] = []
        self._values = _Values()
        self._name_values()
        raise_first(path, self._problems)
        self._rows = _Rows()
        self._items: dict[str, int] = {}
        self._read_partition(CountedList(path / _PARTITION, self._problems))
        present = {self._split_of(status) for status in set(self._rows.statuses)}
        if not present:
            raise_first(path, self._problems)
            raise DatasetError(f"{path / _PARTITION}: list must name an image, got none")
        self._parts: dict[str, tuple[Split, list[Problem]]] = {}
        splits = tuple(split for split in SPLITS if split in present)
        super().__init__(path, AttributeSchema.of(self._values.names), splits)

    @classmethod
    def recognises(cls, root: str | os.PathLike[str]) -> bool:
        """Return whether a list that only this benchmark has is in a folder."""
        return any((Path(root) / hint).is_file() for hint in cls._HINTS)

    @property
    def identities(self) -> tuple[str, ...]:
        """What ``Split.identities`` counts, as the partition names it."""
        return tuple(self._items)

    def _name_values(self) -> None:
        raise NotImplementedError

    def _read_partition(self, entries: CountedList) -> None:
        raise NotImplementedError

    def _read_lists(self) -> None:
        raise NotImplementedError

    def _retrieval(self, chosen: NDArray[np.int64]) -> dict[str, Any]:
        """Return the columns of a split that has products."""
        return {}

    def _list(self, name: str) -> CountedList:
        return CountedList(self._anno / name, self._problems)

    def _split_of(self, status: int) -> str:
        return tuple(self._STATUSES.values())[status]

    def _add(
        self, entries: CountedList, line: int, name: str, status: str, item: str = "", domain: int = _SHOP
    ) -> bool:
        """Add an image of the partition; return whether it was there already, in the same place."""
        rows = self._rows
        problem = filename_problem(name, self._anno.parent)
        if problem is not None:
            entries.report("unparsable", line, problem)
            return False
        if status not in self._STATUSES:
            message = f"status must be one of {', '.join(self._STATUSES)}, got {brief(status)}"
            entries.report("out of range", line, message)
            return False
        number = list(self._STATUSES).index(status)
        product = self._number_item(entries, line, item, number) if item else -1
        row = rows.index.setdefault(name, len(rows))
        if row == len(rows):
            rows.lines.append(line)
            rows.statuses.append(number)
            rows.items.append(product)
            rows.domains.append(domain)
            return False
        first = rows.lines[row]
        if rows.statuses[row] != number:
            there = list(self._STATUSES)[rows.statuses[row]]
            message = f"image {name} must have one status, got {status} here and {there} in line {first}"
            entries.report("in two splits", line, message)
        elif (rows.items[row], rows.domains[row]) != (product, domain):
            message = f"image {name} must show one item in one place, got another in line {first}"
            entries.report("unparsable", line, message)
        else:
            return True
        return False

    def _number_item(self, entries: CountedList, line: int, item: str, status: int) -> int:
        """Return the number of an item, and tell where it is in two splits."""
        product = self._items.setdefault(item, len(self._items))
        statuses = self._rows.item_statuses
        if product == len(statuses):
            statuses.append(status)
        here, there = self._split_of(status), self._split_of(statuses[product])
        if here != there:
            message = f"item {item} must be in one split, got {here} here and {there} before"
            entries.report("leak", line, message)
        return product

    def _of_images(
        self, entries: CountedList, named: Iterable[tuple[int, str, _T]]
    ) -> Iterator[tuple[int, int, _T]]:
        """Yield row, line and what a list says of the partition's images, each of which it must name once."""
        index = self._rows.index
        seen = np.zeros(len(index), dtype=bool)
        for line, name, rest in named:
            row = index.get(name)
            if row is None:
                continue
            if seen[row]:
                entries.report("unparsable", line, f"image {name} must be there once, got it again")
                continue
            seen[row] = True
            yield row, line, rest
        if seen.any():  # otherwise the list is the trouble
            for name, row in index.items():
                if not seen[row]:
                    entries.report("missing", None, f"list must have a row of image {name}, got none")

    def _read_boxes(self, entries: CountedList, types: Sequence[str]) -> Iterator[tuple[int, int, list[str]]]:
        """Read the list of boxes; yield row, line and the types that it has between image and box."""
        rows = self._rows
        rows.boxes = np.zeros((len(rows), 4), dtype=np.int32)
        words = entries.words(" ".join(["image", *types, "x1 y1 x2 y2"]))
        for row, line, rest in self._of_images(entries, ((line, w[0], w[1:]) for line, w in words)):
            box = entries.box(line, rest[-4:])
            if box is not None:
                rows.boxes[row] = box
                yield row, line, rest[:-4]

    def _label_items(self, entries: CountedList, first: int, count: int) -> None:
        """Read which of ``count`` columns each item has; items without a row have none."""
        rows = self._rows
        found: dict[int, NDArray[np.int64]] = {}
        for line, text in entries:
            item, rest = _head(text)
            columns = positives(rest, count)
            if columns is None:
                want = f"an item and {count} numbers that are 1, 0 or -1"
                entries.report("unparsable", line, f"line must be {want}, got {brief(text)}")
            elif item in self._items:
                before = found.setdefault(self._items[item], columns)
                if not np.array_equal(before, columns):
                    message = f"item {item} must have the same labels wherever it is, got others before"
                    entries.report("unparsable", line, message)
        none = np.zeros(0, dtype=np.int64)
        for row, product in enumerate(rows.items):
            rows.label(row, first + found.get(product, none))

    def _number(self, entries: CountedList, line: int, what: str, word: str, end: int) -> int | None:
        """Return a number from 1 to ``end``, or None after telling that it is none."""
        number = whole_number(word)
        if number is None or not 1 <= number <= end:
            entries.report("out of range", line, f"{what} must be from 1 to {end}, got {brief(word)}")
            return None
        return number

    def _read(self, name: str) -> tuple[Split, list[Problem]]:
        if not self._parts:
            self._read_lists()
            self._parts = {split: self._part(split) for split in self.splits}
            self._rows = _Rows()
        split, problems = self._parts[name]
        return split, [*problems]

    def _part(self, name: str) -> tuple[Split, list[Problem]]:
        rows = self._rows
        inside = [status for status, split in enumerate(self._STATUSES.values()) if split == name]
        chosen = np.flatnonzero(np.isin(np.array(rows.statuses), inside))
        image_of = np.full(len(rows), -1, dtype=np.int64)
        image_of[chosen] = np.arange(len(chosen))
        labelled = image_of[np.array(rows.label_rows)]
        pairs = np.array(self._values.columns, dtype=np.int64)[np.array(rows.label_columns)[labelled >= 0]]
        names = list(rows.index)
        split = Split(
            name=name,
            root=self.root,
            schema=self.schema,
            images=len(chosen),
            filenames=Texts(self._prefix + names[row] for row in chosen),
            labels=Labels.gather(
                labelled[labelled >= 0], pairs[:, 0], pairs[:, 1], len(chosen), self.schema.value_counts
            ),
            boxes=None if rows.boxes is None else rows.boxes[chosen],
            source=str(self.root / _PARTITION),
            lines=np.array(rows.lines)[chosen],
            **self._retrieval(chosen),
        )
        problems = [*self._problems]
        if split.query_images is not None:
            report_unmatched(split, problems)
        return finish(split, problems), problems


class AttributePredictionDataset(_DeepFashion):
    """The Category and Attribute Prediction Benchmark: 289,222 images, 50 categories, 1,000 attribute values.

    All of these in ``Anno/`` or ``Anno_coarse/``, with ``Eval/list_eval_partition.txt`` (image, status):

    =========================  =======================================================================
    list_attr_cloth.txt        name (may hold spaces), type: 1 texture, 2 fabric, 3 shape, 4 part, 5 style
    list_attr_img.txt          image, for each of those 1, 0 (unknown) or -1
    list_category_cloth.txt    name, type (not read)
    list_category_img.txt      image, number of the category from 1
    list_bbox.txt              image, box
    =========================  =======================================================================

    The attributes are the types that occur, their values the names, and "category". Zeros count as no label.
    """

    LOOKED_FOR = "Anno/list_attr_img.txt, Anno_coarse/list_attr_img.txt (DeepFashion attribute prediction)"
    _HINTS = tuple(
        f"{folder}/list_{kind}_img.txt" for folder in ("Anno_coarse", "Anno") for kind in ("attr", "category")
    )

    def _name_values(self) -> None:
        entries = self._list("list_attr_cloth.txt")
        named: list[tuple[str, str]] = []
        for line, text in entries:
            *words, word = text.split()
            number = self._number(entries, line, "type", word, len(_TYPES))
            named.append((" ".join(words), _TYPES[(number or 1) - 1]))
            if not words:
                entries.report("unparsable", line, f"line must be a name and a type, got {brief(text)}")
        self._values.names = {kind: [] for kind in _TYPES if any(kind == k for _, k in named)}
        for name, kind in named:
            self._values.add(kind, [name])
        categories = self._list("list_category_cloth.txt")
        names = [" ".join(text.split()[:-1]) for _, text in categories]
        self._category = self._values.add("category", names)
        if not all(names) or not names:
            categories.report("unparsable", None, f"list must hold names and types, got {brief(names)}")

    def _read_partition(self, entries: CountedList) -> None:
        for line, (name, status) in entries.words("image status"):
            if self._add(entries, line, name, status):
                entries.report("duplicate", line, f"image {name} must be there once, got it again")

    def _read_lists(self) -> None:
        rows = self._rows
        for _ in self._read_boxes(self._list("list_bbox.txt"), ()):
            pass
        entries = self._list("list_category_img.txt")
        words = entries.words("image category")
        end = len(self._values.columns) - self._category
        for row, line, (word,) in self._of_images(entries, ((line, w[0], w[1:]) for line, w in words)):
            number = self._number(entries, line, "category", word, end)
            if number is not None:
                rows.label(row, [self._category + number - 1])
        entries = self._list("list_attr_img.txt")
        for row, line, text in self._of_images(entries, ((line, *_head(text)) for line, text in entries)):
            columns = positives(text, self._category)
            if columns is None:
                want = f"an image and {self._category} numbers that are 1, 0 or -1"
                entries.report("unparsable", line, f"line must be {want}, got {brief(text)}")
            else:
                rows.label(row, columns)


class InShopDataset(_DeepFashion):
    """The In-shop Clothes Retrieval Benchmark: 52,712 images of 7,982 items.

    ``Eval/list_eval_partition.txt`` (image, item, train, query or gallery) and ``Anno/list_bbox_inshop.txt``
    (image, clothes type, pose type, box). Query and gallery are the split "test", items the identities, and
    the attributes "clothes_type" and "pose_type".

    ``list_attr_cloth.txt`` (names) and ``list_attr_items.txt`` (item, for each name 1, 0 or -1) may be in
    ``Anno/`` or ``Anno/attributes/``; their names are then the values of the attribute "attribute". The
    lists of items, colours, descriptions and landmarks are not read.
    """

    LOOKED_FOR = "Anno/list_bbox_inshop.txt (DeepFashion in-shop)"
    _HINTS = ("Anno/list_bbox_inshop.txt", "Anno/list_item_inshop.txt")
    _STATUSES: ClassVar[dict[str, str]] = {"train": "train", "query": "test", "gallery": "test"}

    def _name_values(self) -> None:
        self._values.add("clothes_type", _CLOTHES)
        self._pose = self._values.add("pose_type", _POSES)
        self._attributes = len(self._values.columns)
        self._item_list = self._optional("list_attr_items.txt")
        if self._item_list is not None:
            names = CountedList(self._item_list.path.with_name("list_attr_cloth.txt"), self._problems)
            self._values.add("attribute", [text.strip() for _, text in names])
            if not self._values.names["attribute"]:
                names.report("unparsable", None, "list must name an attribute, got none")

    def _optional(self, name: str) -> CountedList | None:
        paths = (self._anno / name, self._anno / "attributes" / name)
        return next((CountedList(path, self._problems) for path in paths if path.is_file()), None)

    def _read_partition(self, entries: CountedList) -> None:
        for line, (name, item, status) in entries.words("image item status"):
            if self._add(entries, line, name, status, item):
                entries.report("duplicate", line, f"image {name} must be there once, got it again")

    def _read_lists(self) -> None:
        entries = self._list("list_bbox_inshop.txt")
        for row, line, (clothes, pose) in self._read_boxes(entries, ("clothes_type", "pose_type")):
            numbers = (
                self._number(entries, line, "clothes_type", clothes, len(_CLOTHES)),
                self._number(entries, line, "pose_type", pose, len(_POSES)),
            )
            firsts = (0, self._pose)
            self._rows.label(row, [f + n - 1 for f, n in zip(firsts, numbers, strict=True) if n is not None])
        if self._item_list is not None:
            self._label_items(self._item_list, self._attributes, len(self._values.columns) - self._attributes)

    def _retrieval(self, chosen: NDArray[np.int64]) -> dict[str, Any]:
        statuses = np.array(self._rows.statuses)[chosen]
        columns = {"identities": np.array(self._rows.items)[chosen]}
        if statuses.any():  # in training there is nothing to ask
            columns["query_images"] = np.flatnonzero(statuses == 1).astype(np.int32)
            columns["gallery_images"] = np.flatnonzero(statuses == 2).astype(np.int32)
        return columns


class ConsumerToShopDataset(_DeepFashion):
    """The Consumer-to-shop Clothes Retrieval Benchmark: 239,557 images of 33,881 items.

    ``Eval/list_eval_partition.txt`` (consumer image, shop image, item, status; an image is in several pairs)
    and ``Anno/list_bbox_consumer2shop.txt`` (image, clothes type, source type: 1 shop, 2 consumer, box).
    Items are the identities, numbered alike in all splits; consumer images ask, shop images answer. Each
    split has its own shop images; a gallery over two splits, as the benchmark's over val and test, is the
    protocol's matter. The attribute "clothes_type" is always there.

    With ``list_attr_items.txt`` (item, for each attribute value 1, 0 or -1) in ``Anno/``, which needs
    ``list_attr_cloth.txt`` (Chinese name, English name, number of the type) and ``list_attr_type.txt``
    (Chinese name, English name) beside it, columns parted by two spaces or more, each type is an attribute.
    Values have their English names, and where those repeat within a type the Chinese one in brackets.
    """

    LOOKED_FOR = "Anno/list_bbox_consumer2shop.txt (DeepFashion consumer-to-shop)"
    _HINTS = ("Anno/list_bbox_consumer2shop.txt", "Anno/list_item_consumer2shop.txt")

    def _name_values(self) -> None:
        self._attributes = len(_CLOTHES)
        self._values.add("clothes_type", _CLOTHES)
        self._has_attributes = (self._anno / "list_attr_items.txt").is_file()
        if self._has_attributes:
            entries = self._list("list_attr_type.txt")
            types = [names[1] for _, names in self._fields(entries, 2)]
            if len({*types, *self._values.names}) < len(types) + 1:
                entries.report("unparsable", None, f"types must have different names, got {brief(types)}")
            entries = self._list("list_attr_cloth.txt")
            values = []
            for line, (chinese, english, word) in self._fields(entries, 3):
                number = self._number(entries, line, "attribute_type", word, len(types))
                values.append((chinese, english, "" if number is None else types[number - 1]))
            times = Counter((english, kind) for _, english, kind in values)
            self._values.names |= {kind: [] for kind in types if any(kind == k for *_, k in values)}
            for chinese, english, kind in values:
                self._values.add(kind, [english if times[english, kind] == 1 else f"{english} ({chinese})"])

    def _fields(self, entries: CountedList, count: int) -> Iterator[tuple[int, list[str]]]:
        for line, text in entries:
            fields = re.split(r"\s{2,}", text.strip())
            if len(fields) == count:
                yield line, fields
            else:
                want = f"{count} columns, parted by two spaces or more"
                entries.report("unparsable", line, f"line must have {want}, got {brief(text)}")

    def _read_partition(self, entries: CountedList) -> None:
        for line, (consumer, shop, item, status) in entries.words("consumer_image shop_image item status"):
            self._add(entries, line, consumer, status, item, _CONSUMER)
            self._add(entries, line, shop, status, item, _SHOP)

    def _read_lists(self) -> None:
        rows, entries = self._rows, self._list("list_bbox_consumer2shop.txt")
        for row, line, (clothes, source) in self._read_boxes(entries, ("clothes_type", "source_type")):
            number = self._number(entries, line, "clothes_type", clothes, len(_CLOTHES))
            if number is not None:
                rows.label(row, [number - 1])
            number = self._number(entries, line, "source_type", source, 2)
            if number is not None and number - 1 != rows.domains[row]:
                place = f"{_PARTITION}:{rows.lines[row]}"
                message = (
                    f"source_type must be {rows.domains[row] + 1}, as {place} has the image, got {number}"
                )
                entries.report("unparsable", line, message)
        if self._has_attributes:
            entries = self._list("list_attr_items.txt")
            self._label_items(entries, self._attributes, len(self._values.columns) - self._attributes)

    def _retrieval(self, chosen: NDArray[np.int64]) -> dict[str, Any]:
        domains = np.array(self._rows.domains)[chosen]
        return {
            "identities": np.array(self._rows.items)[chosen],
            "domains": domains,
            "query_images": np.flatnonzero(domains == _CONSUMER).astype(np.int32),
            "gallery_images": np.flatnonzero(domains == _SHOP).astype(np.int32),
        }


def _head(text: str) -> tuple[str, str]:
    """Return the first word of a line, which is not blank, and the rest."""
    name, *rest = text.split(None, 1)
    return name, "".join(rest)
