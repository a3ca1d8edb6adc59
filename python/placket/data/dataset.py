"""What every reader of a layout gives: splits of images with boxes, labels, identities, and lists to score.

Columns are arrays, one entry an image; only file names and captions are strings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from placket import _C
from placket.data.columns import Ints, Labels, Masks, Texts
from placket.schema import AttributeSchema

__all__ = ["Compositions", "Dataset", "DatasetError", "Problem", "Record", "Split"]

SPLITS = ("train", "valid", "test")
WHOLE_IMAGE = (0, 0, 2**31 - 1, 2**31 - 1)
_T = TypeVar("_T")
_WARNINGS = ("duplicate", "near duplicate", "single value", "unmatched", "convention")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set.

    ``kind`` is "unreadable" (a file), "unparsable" (a line), "out of range", "missing" (an image, or what a
    list must say of it), "damaged" (images), "in two splits" or "leak" (images or products that make a score
    wrong), or, as warnings that do not hinder anybody, "duplicate" and "near duplicate" (images), "single
    value" (an attribute that cannot be learnt), "unmatched" (a query whose product the gallery has not) and
    "convention" (labels that were renumbered). ``line`` counts from 1, in JSON the entries of a list.
    """

    kind: str
    file: str
    line: int | None
    message: str

    @property
    def severity(self) -> str:
        return "warning" if self.kind in _WARNINGS else "error"

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.message}"


class DatasetError(ValueError):
    """A data set cannot be used; the text names the file, the line, the condition and the value."""


@dataclass(frozen=True)
class Record:
    """One image of a data set, its labels by name."""

    split: str
    image: int
    filename: str
    labels: dict[str, tuple[str, ...]]
    """Attribute to its values; attributes without a label are left out."""
    box: tuple[int, int, int, int] | None
    """x0 y0 x1 y1 in pixels, x1 and y1 exclusive; None for the whole image."""


@dataclass(frozen=True)
class Split:
    """One split of a data set; n images, whose ids are 0 to n - 1.

    Of a split of regions (``Dataset.region_split``) each row is a part of an image, so that several have one
    file: its box and mask, its labels, and as identity the number of the photo.
    """

    name: str
    root: Path
    schema: AttributeSchema
    images: int
    filenames: Texts
    """[n] relative to ``root``; empty where the list of filenames is absent."""
    labels: Labels
    """Of n images; without any entry where the label list is absent."""
    boxes: Ints | None = None
    """[n, 4], x0 y0 x1 y1 in pixels, x1 and y1 exclusive; None where the set has none. Boxes are cut to the
    image, so that 0 0 2^31-1 2^31-1 stands for an image without one in a set that has some."""
    queries: Ints = field(default_factory=lambda: no_triples())
    """[queries, 3]: image, attribute, value."""
    candidates: Ints = field(default_factory=lambda: no_triples())
    """[candidates, 3]: image, attribute, value."""
    warnings: tuple[str, ...] = ()
    """What is odd but usable, a sentence each."""
    identities: Ints | None = None
    """[n], the product an image shows, the same number in every split, -1 where it is not known; None where
    the set has none."""
    domains: Ints | None = None
    """[n], 0 for a shop's photo, 1 for a consumer's; None where the set has one kind."""
    query_images: Ints | None = None
    """Images that ask for others of their identity; None where the set has no such lists."""
    gallery_images: Ints | None = None
    """Images among which those are sought."""
    sequences: Ints | None = None
    """[n], what images were shot together: to a query the others of its sequence are no answers; -1 for none.
    None where the set does not say."""
    source: str = ""
    """The file that lists the images."""
    lines: Ints | None = None
    """[n], the line of ``source`` that lists each image, from 1, or 0 where ``source`` is no list; None
    where images are in its order."""
    store: _C.Store | None = None
    """What holds the images where they are no files below ``root``, which is then the store's path."""
    places: Ints | None = None
    """[n], the record of the store that each image is."""
    masks: Masks | None = None
    """Which pixels of its image each row shows; None where all of them."""
    photos: Ints | None = None
    """[n], of regions, the image of the data set's split (``Dataset.split``) that each is a part of."""

    def __len__(self) -> int:
        return self.images

    def line(self, image: int) -> int | None:
        """Return the line of ``source``, from 1, that lists an image."""
        return image + 1 if self.lines is None else int(self.lines[image]) or None

    @property
    def paths(self) -> list[str]:
        """What messages call the images: their absolute paths, in a store its path and theirs.

        ``placket.data.read_image`` takes them.

        Raises:
            DatasetError: the list of filenames is absent.
        """
        images = self.image_list()
        return [images.path(image) for image in range(len(self))]

    def mask(self, image: int) -> NDArray[np.bool_]:
        """Return which pixels of its upright image a row shows, [height, width].

        Raises:
            ValueError: the split has no masks.
            RuntimeError: the mask cannot be read; the text names file and cause.
        """
        if self.masks is None:
            raise ValueError(f"{self.root}: split '{self.name}' must have masks, got none")
        path = os.path.join(os.path.abspath(self.root), self.masks.filenames[image])
        return self.masks.shown(image, _C.decode_mask(path))

    def image_list(self, resident: _C.ResidentPixels | None = None) -> _C.ImageList:
        """Return images, boxes and masks as the C++ core takes them, with their store's pixels on a device.

        Raises:
            DatasetError: the list of filenames is absent.
        """
        if len(self.filenames) != self.images:
            raise DatasetError(
                f"{self.root}: split '{self.name}' must have {Path(self.source).name} where images are "
                "needed, got none; put it beside the other lists"
            )
        return _C.ImageList(
            self.filenames.native,
            self.boxes,
            root=os.path.abspath(self.root),
            store=self.store,
            records=() if self.places is None else self.places.tolist(),
            resident=resident,
            masks=None if self.masks is None else self.masks.to_native(),
        )

    def under(self, schema: AttributeSchema, first: int = 0) -> Split:
        """Return the split with its attributes numbered as in a schema that holds them.

        Args:
            schema: a model's, for example, that knows further attributes.
            first: labels and lists of attributes before this one, in ``schema``, are left out.

        Raises:
            DatasetError: the schema does not hold an attribute, or with other values.
        """
        if schema == self.schema and first == 0:
            return self
        for own in self.schema.attributes:
            if own not in schema.attributes:
                raise DatasetError(
                    f"{self.root}: attribute '{own.name}' must be one of {', '.join(schema.names)} with the "
                    f"same values, got {', '.join(own.values)}"
                )
        numbers = np.array([schema.index(name) for name in self.schema.names], dtype=np.int64)

        def renumbered(rows: Ints) -> NDArray[np.int64]:
            moved = rows.astype(np.int64)
            moved[:, 1] = numbers[moved[:, 1]]
            return moved[moved[:, 1] >= first]

        labels = self.labels
        rows = renumbered(np.stack([labels.images(), labels.attribute, labels.value], axis=1))
        return dataclasses.replace(
            self,
            schema=schema,
            labels=Labels.gather(rows[:, 0], rows[:, 1], rows[:, 2], len(self), schema.value_counts),
            queries=renumbered(self.queries),
            candidates=renumbered(self.candidates),
        )

    def with_products(self) -> Labels:
        """Return the labels with two attributes more, behind the schema's: product and domain.

        The product is the image's identity, numbered from 0 without gaps in this split, in the order of the
        identities; an image whose product is not known has no label of it. The domain is 0 for a shop's
        photo and 1 for a consumer's; in a split of one kind there is no other than 0.

        Returns:
            labels of n images over [*values of the schema's attributes, products, domains].

        Raises:
            DatasetError: the split has no identities.
        """
        if self.identities is None:
            raise DatasetError(f"{self.root}: split '{self.name}' must have identities, got none")
        known = np.flatnonzero(self.identities >= 0)
        products, product = np.unique(self.identities[known], return_inverse=True)
        domain = np.zeros(len(self), dtype=np.int8) if self.domains is None else self.domains
        labels, first = self.labels, len(self.schema)
        columns = (
            (labels.images(), labels.attribute, labels.value),
            (known, np.full(len(known), first), product),
            (np.arange(len(self)), np.full(len(self), first + 1), domain),
        )
        images, attribute, value = (np.concatenate(parts) for parts in zip(*columns, strict=True))
        counts = (*self.schema.value_counts, len(products), 1 if self.domains is None else 2)
        return Labels.gather(images, attribute, value, len(self), counts)

    @property
    def records(self) -> Iterator[Record]:
        """The images one by one, with names instead of numbers."""
        return (self.record(image) for image in range(self.images))

    def record(self, image: int) -> Record:
        """Return one image."""
        attributes = self.schema.attributes
        names: dict[str, tuple[str, ...]] = {}
        for a, v in self.labels[image]:
            name = attributes[a].name
            names[name] = (*names.get(name, ()), attributes[a].values[v])
        filename = self.filenames[image] if self.filenames else ""
        box = None
        if self.boxes is not None and tuple(self.boxes[image].tolist()) != WHOLE_IMAGE:
            x0, y0, x1, y1 = self.boxes[image].tolist()
            box = (x0, y0, x1, y1)
        return Record(self.name, image, filename, names, box)


@dataclass(frozen=True)
class Compositions:
    """Queries of an image with a text that says what shall differ, as FashionIQ and CIRR have them."""

    reference: Ints
    """[m], image of the split."""
    target: Ints
    """[m], image of the split, -1 where it is withheld."""
    captions: Texts
    """Sentences; those of query i are entries ``begin[i]`` to ``begin[i + 1]``."""
    begin: Ints
    """[m + 1]."""
    category: Ints | None = None
    """[m], value of the attribute "category" in which the query asks; None where the set has none."""
    subset: Ints | None = None
    """[m, k], images alike among which the target is sought too (CIRR's Recall_subset); None without."""
    groups: Ints | None = None
    """[n], a number for each image of the split: those with the target's number are right answers as it is;
    -1 for an image that is no target. None where the target alone is right."""

    def __len__(self) -> int:
        return len(self.reference)


class Dataset:
    """A folder of images in some layout; a split is read when it is first asked for.

    Args:
        root: the folder.
        schema: the attributes.
        splits: names of the splits.
        place: what ``placket.data.open`` takes to open it; by default the folder.
    """

    shared_images: bool = False
    """Whether an image may be there twice, in a split or in two; the reader tells where it must not."""

    def __init__(
        self, root: Path, schema: AttributeSchema, splits: tuple[str, ...], place: Path | None = None
    ) -> None:
        self.root = root
        self.place = place or root
        self.schema = schema
        self.splits = splits
        self._loaded: dict[str, Split] = {}

    def __repr__(self) -> str:
        attributes = ", ".join(self.schema.names)
        return f"{type(self).__name__}('{self.root}', splits={self.splits}, attributes=({attributes}))"

    def __len__(self) -> int:
        """Images of all splits together."""
        return sum(len(self.split(name)) for name in self.splits)

    @property
    def records(self) -> Iterator[Record]:
        """The images of all splits one by one, with names instead of numbers."""
        for name in self.splits:
            yield from self.split(name).records

    def split(self, name: str) -> Split:
        """Read a split.

        Raises:
            DatasetError: there is no such split, or something in its lists is wrong.
        """
        if name not in self.splits:
            raise DatasetError(f"{self.root}: split must be one of {', '.join(self.splits)}, got '{name}'")
        if name not in self._loaded:
            split, problems = self._read(name)
            raise_first(self.place, problems)
            self._loaded[name] = split
        return self._loaded[name]

    def regions(self, split: str) -> Ints | None:
        """Return the true regions, or None where the set has none.

        [rows, 6] int64: image, attribute, x0, y0, x1, y1 in pixels, x1 and y1 exclusive. A region of several
        parts has several rows.

        Raises:
            DatasetError: something in the list is wrong.
        """
        return self._whole(self._read_regions, split)

    def region_split(self, split: str) -> Split | None:
        """Return a split whose rows are the regions of a split's images, or None where the set has none.

        An image without regions has no row. Regions of one photo have one identity, others have others, in
        every split; the photo itself is ``Split.photos``.

        Raises:
            DatasetError: something in the lists, or a mask they are made from, is wrong.
        """
        return self._whole(self._read_region_split, split)

    def compositions(self, split: str) -> Compositions | None:
        """Return the queries of image and text, or None where the set has none.

        Raises:
            DatasetError: something in the list is wrong.
        """
        return self._whole(self._read_compositions, split)

    def captions(self, split: str) -> Texts | None:
        """Return a sentence for each image, or None where the set has none.

        Raises:
            DatasetError: something in the list is wrong.
        """
        return self._whole(self._read_captions, split)

    def inspect(self, name: str) -> tuple[Split, list[Problem]]:
        """Read everything of a split and return it with all that is wrong, without raising.

        Only without errors is the split whole.
        """
        split, problems = self._read(name)
        self._read_regions(split, problems)
        self._read_region_split(split, problems)
        self._read_captions(split, problems)
        self._read_compositions(split, problems)
        return split, list(dict.fromkeys(problems))  # regions are made from lists that were read before

    def _whole(self, read: Callable[[Split, list[Problem]], _T], split: str) -> _T:
        problems: list[Problem] = []
        found = read(self.split(split), problems)
        raise_first(self.place, problems)
        return found

    def _read(self, name: str) -> tuple[Split, list[Problem]]:
        raise NotImplementedError

    def _read_regions(self, split: Split, problems: list[Problem]) -> Ints | None:
        return None

    def _read_region_split(self, split: Split, problems: list[Problem]) -> Split | None:
        return None

    def _read_captions(self, split: Split, problems: list[Problem]) -> Texts | None:
        return None

    def _read_compositions(self, split: Split, problems: list[Problem]) -> Compositions | None:
        return None


def raise_first(place: Path, problems: Sequence[Problem]) -> None:
    """Raise DatasetError with the first error, and how to see the others."""
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more: placket data verify {place})" if len(errors) > 1 else ""
        raise DatasetError(f"{errors[0]}{more}")


def filename_problem(filename: str, root: Path) -> str | None:
    """Return what is wrong with an image's path, which must lie inside the data set."""
    if not filename.strip() or "\0" in filename:
        return f"line must be the path of an image, got {brief(filename)}"
    if not is_text(filename):
        return f"path must be UTF-8, got {brief(filename)}; rename the file"
    if filename.startswith("/") or ".." in filename.split("/"):
        return f"path must lie inside {root}, got {brief(filename)}"
    return None


def check_variety(labels: Labels, schema: AttributeSchema, file: str) -> list[Problem]:
    """Return a warning for each attribute with images of one value only."""
    problems = []
    for a, name in enumerate(schema.names):
        used = np.flatnonzero(labels.counts(a))
        if len(used) == 1:
            value = schema[a].values[used[0]]
            message = f"attribute '{name}' must have images of two values to be learnt, got only '{value}'"
            message += "; label other values or leave the attribute out"
            problems.append(Problem("single value", file, None, message))
    return problems


def divide(
    filenames: Sequence[str], labels: Labels, query_share: float = 0.2
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide the labelled images of each attribute into queries and candidates, for a set without lists.

    An image is a query with probability ``query_share``, by a hash of its path, so that it stays one when
    others come or go. The first value of an attribute counts, as in the published lists, which have one each.

    Returns:
        queries and candidates, [rows, 3] int64 each: image, attribute, value.
    """
    triples = np.stack([labels.images(), labels.attribute, labels.value], axis=1).astype(np.int64)
    _, kept = np.unique(triples[:, :2], axis=0, return_index=True)
    triples = triples[np.sort(kept)]
    bound = int(query_share * 2**64)
    asked = np.array([_hash(filename) < bound for filename in filenames], dtype=bool)[triples[:, 0]]
    return triples[asked], triples[~asked]


def no_triples() -> NDArray[np.int64]:
    """Return an empty list of queries or candidates."""
    return np.zeros((0, 3), dtype=np.int64)


def _hash(filename: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(filename.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little"
    )


def is_text(name: str) -> bool:
    """Return whether a name can be written as UTF-8 and ends where it seems to."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name


_PARTS = reprlib.Repr()
_PARTS.maxlevel, _PARTS.maxlist, _PARTS.maxdict, _PARTS.maxtuple = 3, 20, 20, 20


def brief(value: object) -> str:
    """Return a value for a message, at most 80 characters; of one with many parts, some."""
    try:
        text = repr(value) if isinstance(value, str) else _PARTS.repr(value)
    except ValueError:  # more digits than Python writes
        text = "a number of too many digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
