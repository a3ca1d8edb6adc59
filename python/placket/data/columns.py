"""Columns of a split: strings, labels and boxes of its images in arrays, not objects.

A million images with paths of 40 characters, six labels, a box and an identity take about 90 MB.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from placket import _C

__all__ = ["Columns", "Ints", "Labels", "Masks", "Texts"]

Ints = NDArray[np.signedinteger[Any]]


class Texts(Sequence[str]):
    """Strings in one block of memory, n + 4 bytes for one of n; equal to any sequence of the same strings."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Copy the strings.

        Raises:
            ValueError: together they take 4 GiB or more.
        """
        self.native = _C.TextColumn(texts)

    @staticmethod
    def of(native: _C.TextColumn) -> Texts:
        """Take a column of the C++ core, without a copy."""
        texts = Texts.__new__(Texts)
        texts.native = native
        return texts

    def __len__(self) -> int:
        return len(self.native)

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> Texts: ...

    def __getitem__(self, i: int | slice) -> str | Texts:
        if isinstance(i, slice):
            return Texts(self.native[k] for k in range(*i.indices(len(self))))
        return self.native[i + len(self) if i < 0 else i]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __reduce__(self) -> tuple[type[Texts], tuple[list[str]]]:
        return Texts, (list(self),)

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"Texts([{shown}{', ...' if len(self) > 3 else ''}], {len(self)} strings)"


@dataclass(frozen=True)
class Labels:
    """Values of the attributes of n images in compressed rows.

    The labels of image i are entries ``begin[i]`` to ``begin[i + 1]`` of ``attribute`` and ``value``; an
    image may have none or several of one attribute. The arrays have the smallest signed type that holds them.
    """

    begin: Ints
    """[n + 1]."""
    attribute: Ints
    """[labels]."""
    value: Ints
    """[labels], within the attribute."""
    values: tuple[int, ...]
    """How many values each attribute has."""

    @staticmethod
    def of(rows: Sequence[Sequence[tuple[int, int]]], values: tuple[int, ...]) -> Labels:
        """Make a table of each image's (attribute, value) pairs."""
        columns = Columns()
        for row in rows:
            columns.add("", row)
        return columns.labels(values)

    @staticmethod
    def gather(images: Ints, attribute: Ints, value: Ints, n: int, values: tuple[int, ...]) -> Labels:
        """Make the table of n images from the image, attribute and value of each label, in any order."""
        order = np.argsort(images, kind="stable")
        begin = np.searchsorted(images[order], np.arange(n + 1))
        return Labels(smallest(begin), smallest(attribute[order]), smallest(value[order]), values)

    def __len__(self) -> int:
        return len(self.begin) - 1

    def __getitem__(self, image: int) -> list[tuple[int, int]]:
        """Return the (attribute, value) pairs of one image."""
        rows = slice(self.begin[image], self.begin[image + 1])
        return list(zip(self.attribute[rows].tolist(), self.value[rows].tolist(), strict=True))

    def counts(self, attribute: int) -> NDArray[np.int64]:
        """Return how many labels each value of an attribute has, [values] int64."""
        return np.bincount(self.value[self.attribute == attribute], minlength=self.values[attribute])

    def images(self) -> NDArray[np.int64]:
        """Return the image of each label, [labels] int64."""
        return np.repeat(np.arange(len(self)), np.diff(self.begin))

    def renumber(self, numbers: Sequence[Ints], values: tuple[int, ...]) -> Labels:
        """Return the labels with ``numbers[attribute][value]`` for each value; a negative one drops it."""
        offset = np.cumsum([0, *map(len, numbers)])
        table = np.concatenate([np.asarray(column, dtype=np.int64) for column in numbers])
        value = table[offset[self.attribute] + self.value]
        kept = value >= 0
        begin = np.concatenate([[0], np.cumsum(kept)])[self.begin]
        return Labels(smallest(begin), self.attribute[kept], smallest(value[kept]), values)

    def to_native(self) -> _C.LabelTable:
        """Return the table as the C++ core takes it."""
        return _C.LabelTable(self.begin, self.attribute, self.value, self.values)


@dataclass(frozen=True)
class Masks:
    """Which pixels of its image each row of a split of regions shows.

    They are those of a picture of the image's size, a PNG of one grey channel of 8 bits, that hold the row's
    number.
    """

    filenames: Texts
    """[n] relative to the split's root; several rows may have one."""
    numbers: NDArray[np.uint8]
    """[n]."""
    bits: bool = False
    """A pixel holds a number, 0 to 7, as that bit of it, so that regions may overlap; otherwise as its
    value."""

    def __len__(self) -> int:
        return len(self.numbers)

    def shown(self, row: int, picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return which of the picture's pixels are those of a row, of its shape."""
        number = self.numbers[row]
        return np.asarray((picture >> number) % 2 == 1 if self.bits else picture == number)

    def to_native(self) -> _C.MaskColumn:
        """Return the column as the C++ core takes it.

        Raises:
            ValueError: files and numbers do not fit together, or a number is no bit.
        """
        return _C.MaskColumn(self.filenames.native, self.numbers, self.bits)


class Columns:
    """Collects the images of a split one by one."""

    def __init__(self) -> None:
        self.filenames = Texts()
        self.captions = Texts()
        self._begin = array("q", [0])
        self._attribute = array("i")
        self._value = array("i")
        self._lines = array("i")
        self._identities = array("i")
        self._domains = array("b")
        self._boxes = array("i")

    def __len__(self) -> int:
        return len(self._lines)

    def add(
        self,
        filename: str,
        labels: Iterable[tuple[int, int]] = (),
        *,
        line: int = 0,
        identity: int = -1,
        domain: int = 0,
        box: Sequence[int] | None = None,
        caption: str | None = None,
    ) -> int:
        """Add an image and return its number; all of a split's images have a box, a caption, or none has."""
        self.filenames.native.append(filename)
        for a, v in labels:
            self._attribute.append(a)
            self._value.append(v)
        self._begin.append(len(self._value))
        self._lines.append(line)
        self._identities.append(identity)
        self._domains.append(domain)
        self._boxes.extend(box or ())
        if caption is not None:
            self.captions.native.append(caption)
        return len(self) - 1

    def labels(self, values: tuple[int, ...]) -> Labels:
        """Return the labels of attributes with so many values."""
        begin, attribute, value = (np.array(c) for c in (self._begin, self._attribute, self._value))
        return Labels(smallest(begin), smallest(attribute), smallest(value), values)

    @property
    def lines(self) -> NDArray[np.int32]:
        """[n] int32."""
        return np.array(self._lines)

    @property
    def identities(self) -> NDArray[np.int32]:
        """[n] int32."""
        return np.array(self._identities)

    @property
    def domains(self) -> NDArray[np.int8]:
        """[n] int8."""
        return np.array(self._domains)

    @property
    def boxes(self) -> NDArray[np.int32]:
        """[n, 4] int32, or [0, 4]."""
        return np.array(self._boxes).reshape(-1, 4)


def smallest(values: Ints) -> Ints:
    """Return whole numbers in the smallest signed type that holds them."""
    extremes = (values.min(initial=0), values.max(initial=0))
    for kind in (np.int8, np.int16, np.int32):
        if np.iinfo(kind).min <= extremes[0] and extremes[1] <= np.iinfo(kind).max:
            return values.astype(kind)
    return values.astype(np.int64)
