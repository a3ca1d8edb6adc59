"""Reader of the layout of the ASEN family, in which FashionAI, DARN and DeepFashion are published.

A data set is a folder with, for each split (train, valid, test), some of these lists, each also as
``.txt.gz``; an image's id is its line in ``filenames_{split}.txt``, from 0, and all numbers are decimal
integers:

===================================  ==================================================================
``filenames_{split}.txt``            one path a line, relative to the folder
``label_{split}.txt``                ``id a0 v0 a1 v1 ...``: attributes with values, any number of each
``query_{split}.txt``                ``id attribute value``
``candidate_{split}.txt``            ``id attribute value``
``bbox_{split}.txt``                 ``x0 y0 x1 y1`` in pixels, x1 and y1 exclusive, one line an image
``regions_{split}.txt``              ``id attribute x0 y0 x1 y1``, one line for each part of a region
``captions_{split}.txt``             ``id``, a tab, a sentence
``masks/{name}.png``                 for an image ``.../{name}.jpg``, of its size, one grey channel of 8 bits:
                                     bit a is set where the pixel belongs to the region of attribute a
``meta.json``                        here or in the parent folder: names of attributes and values
===================================  ==================================================================

``meta.json`` holds ``{"<folder name>": {"ATTRIBUTES": [name, ...], "ATTRIBUTES_NUM": {name: number of
values}, "VALUES": {name: [value name, ...]}}}``; without VALUES the values are called by their numbers.

Reading is strict: nothing is skipped or guessed, and what is wrong is named with its file and line. One
published file differs: ``label_{valid,test}.txt`` of DeepFashion counts attributes from 1 and numbers values
across all attributes. Such a file is recognised, and its numbers are brought to those of the query and
candidate lists by the images that occur in both.

A region of ``Dataset.region_split`` is that of one image and attribute, all parts of it together, and has the
image's values of that attribute alone; without the folder ``masks`` it has a box only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from placket.data.columns import Ints, Labels, Masks, Texts
from placket.data.dataset import (
    SPLITS,
    Dataset,
    DatasetError,
    Problem,
    Split,
    brief,
    check_variety,
    filename_problem,
)
from placket.data.lists import TextList
from placket.data.regions import region_rows
from placket.schema import Attribute, AttributeSchema

__all__ = ["AsenDataset"]

_LISTS = ("filenames", "label", "query", "candidate")
_MASK_BITS = 8
# A damaged number must not take the memory that it claims.
_MOST_VALUES = 100_000
_MOST_IMAGES_A_LINE = 10  # where no list of filenames says how many there are


class AsenDataset(Dataset):
    """A folder in the layout of the ASEN family."""

    LOOKED_FOR: ClassVar[str] = "filenames_{split}.txt, label_{split}.txt (ASEN)"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Open a folder.

        Raises:
            DatasetError: it is absent, holds no list, or ``meta.json`` does not say its attributes.
        """
        path = Path(root)
        if not path.is_dir():
            raise DatasetError(f"{path}: data set must be a folder, got none there")
        splits = _splits(path)
        if not splits:
            raise DatasetError(
                f"{path}: data set must hold filenames_{{split}}.txt and label_{{split}}.txt "
                "(the ASEN layout), got none of them"
            )
        super().__init__(path, read_schema(path), splits)

    @staticmethod
    def recognises(root: str | os.PathLike[str]) -> bool:
        """Return whether any list of the layout is in a folder."""
        return bool(_splits(Path(root)))

    def _read(self, name: str) -> tuple[Split, list[Problem]]:
        return read_split(self.root, name, self.schema)

    def _read_regions(self, split: Split, problems: list[Problem]) -> Ints | None:
        return read_regions(self.root, split, problems)

    def _read_region_split(self, split: Split, problems: list[Problem]) -> Split | None:
        return read_region_split(self.root, split, problems)

    def _read_captions(self, split: Split, problems: list[Problem]) -> Texts | None:
        return read_captions(self.root, split, problems)


def _splits(root: Path) -> tuple[str, ...]:
    """Return the splits of which any list is there."""
    return tuple(s for s in SPLITS if any(_find(root, f"{stem}_{s}") for stem in _LISTS))


def read_schema(root: Path) -> AttributeSchema:
    """Read names of attributes and values from ``meta.json`` in the folder or its parent.

    Raises:
        DatasetError: there is none, or it does not say what it must.
    """
    path = next((p for p in (root / "meta.json", root.absolute().parent / "meta.json") if p.is_file()), None)
    if path is None:
        raise DatasetError(f"{root / 'meta.json'}: file must name the attributes, got none here or one up")
    try:
        meta: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: file must be JSON, got {error}") from None
    if not isinstance(meta, dict) or not meta or not all(isinstance(entry, dict) for entry in meta.values()):
        raise DatasetError(f"{path}: file must map a data set's name to its attributes, got {brief(meta)}")
    name = root.absolute().name
    if name not in meta and len(meta) > 1:
        raise DatasetError(f"{path}: folder's name must be one of {', '.join(meta)}, got '{name}'")
    entry = meta[name] if name in meta else next(iter(meta.values()))
    attributes, numbers, values = (entry.get(key) for key in ("ATTRIBUTES", "ATTRIBUTES_NUM", "VALUES"))
    if not isinstance(attributes, list) or not attributes or not all(isinstance(a, str) for a in attributes):
        raise DatasetError(f"{path}: ATTRIBUTES must be a list of names, got {brief(attributes)}")
    named: list[Attribute] = []
    for attribute in attributes:
        number = numbers.get(attribute) if isinstance(numbers, dict) else None
        if type(number) is not int or number < 1:
            raise DatasetError(f"{path}: ATTRIBUTES_NUM of '{attribute}' must be positive, got {number!r}")
        if number > _MOST_VALUES:
            most = f"at most {_MOST_VALUES}"
            raise DatasetError(f"{path}: ATTRIBUTES_NUM of '{attribute}' must be {most}, got {number}")
        names = values.get(attribute) if isinstance(values, dict) else [str(v) for v in range(number)]
        if not isinstance(names, list) or len(names) != number or not all(isinstance(n, str) for n in names):
            raise DatasetError(f"{path}: VALUES of '{attribute}' must be {number} names, got {brief(names)}")
        try:
            named.append(Attribute(attribute, tuple(names)))
        except ValueError as error:
            raise DatasetError(f"{path}: {error}") from None
    try:
        return AttributeSchema(tuple(named))
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from None


def read_split(root: Path, name: str, schema: AttributeSchema) -> tuple[Split, list[Problem]]:
    """Read the lists of a split, and all that is wrong with them; only without errors is the split whole."""
    problems: list[Problem] = []
    counts = schema.value_counts
    filenames = _read_filenames(root, name, problems)
    label_list, query_list, candidate_list = (_List(root, f"{stem}_{name}", problems) for stem in _LISTS[1:])
    labelled = _read_label_rows(label_list)
    queries = _read_triples(query_list, counts)
    candidates = _read_triples(candidate_list, counts)

    ids = [*labelled, *queries[:, 0].tolist(), *candidates[:, 0].tolist()]
    most = _MOST_IMAGES_A_LINE * len(ids)
    images = min(max(ids, default=-1) + 1, most) if filenames is None else len(filenames)
    what = f"id without filenames_{name}.txt" if filenames is None else "id"
    for entries in (label_list, query_list, candidate_list):
        entries.check_ids(images, what)
    if images == 0:
        place = label_list.file if filenames is None else str(_path(root, f"filenames_{name}"))
        message = f"split '{name}' must have at least one image, got none; fill the list or remove it"
        problems.append(Problem("unparsable", place, None, message))

    if len(queries) + len(candidates) > 0 and _numbered_across(labelled, counts):
        renumbered = _renumber(labelled, np.concatenate([queries, candidates]), counts, label_list)
        labelled = labelled if renumbered is None else renumbered
    _check_labels(labelled, counts, label_list)
    rows = [labelled.get(image, (0, []))[1] for image in range(images)]
    in_range = [[(a, v) for a, v in row if a < len(counts) and v < counts[a]] for row in rows]
    labels = Labels.of(in_range, counts)
    if labelled:
        problems += check_variety(labels, schema, label_list.file)
    boxes = _read_boxes(root, name, images, problems)
    warnings = tuple(str(problem) for problem in problems if problem.severity == "warning")
    split = Split(
        name, root, schema, images, filenames or Texts(), labels, boxes, queries, candidates, warnings,
        source=str(_path(root, f"filenames_{name}")),
    )  # fmt: skip
    return split, problems


def read_regions(root: Path, split: Split, problems: list[Problem]) -> Ints | None:
    """Read the true regions of a split, as ``Dataset.regions`` returns them."""
    entries = _List(root, f"regions_{split.name}", problems)
    if not entries.there:
        return None
    rows = []
    for line, row in entries.integers("id attribute x0 y0 x1 y1", 6):
        if entries.check(line, "attribute", row[1], len(split.schema)) and _check_box(entries, line, row[2:]):
            rows.append(row)
    entries.check_ids(len(split))
    return np.array(rows, dtype=np.int64).reshape(-1, 6)


def read_region_split(root: Path, split: Split, problems: list[Problem]) -> Split | None:
    """Read the regions of a split, as ``Dataset.region_split`` returns them."""
    parts = read_regions(root, split, problems)
    if parts is None or not split.filenames:
        return None
    parts = parts[parts[:, 0] < len(split)]
    regions, part_of = np.unique(parts[:, :2], axis=0, return_inverse=True)
    photos, attributes = regions.T
    low = np.full((len(regions), 2), np.iinfo(np.int32).max, dtype=np.int32)
    high = np.zeros_like(low)
    np.minimum.at(low, part_of.reshape(-1), parts[:, 2:4])
    np.maximum.at(high, part_of.reshape(-1), parts[:, 4:])
    values = [
        [(a, v) for a, v in split.labels[photo] if a == attribute] for photo, attribute in regions.tolist()
    ]
    labels, masks = Labels.of(values, split.schema.value_counts), None
    if (root / "masks").is_dir():
        files = Texts(f"masks/{Path(split.filenames[photo]).stem}.png" for photo in photos.tolist())
        masks = Masks(files, attributes.astype(np.uint8), bits=True)
        if len(split.schema) > _MASK_BITS:
            message = f"masks must be of at most {_MASK_BITS} attributes, got {len(split.schema)}"
            problems.append(Problem("out of range", str(root / "masks"), None, message))
    return region_rows(split, photos, np.concatenate([low, high], axis=1), labels, masks)


def read_captions(root: Path, split: Split, problems: list[Problem]) -> Texts | None:
    """Read the captions of a split, as ``Dataset.captions`` returns them."""
    entries = _List(root, f"captions_{split.name}", problems)
    if not entries.there:
        return None
    captions: dict[int, str] = {}
    for line, text in entries:
        image, tab, caption = text.partition("\t")
        if not tab or not _is_integer(image) or int(image) >= len(split) or int(image) in captions:
            want = f"be an id below {len(split)} that occurs once, a tab and a sentence"
            entries.report("unparsable", line, f"line must {want}, got {brief(text)}")
        else:
            captions[int(image)] = caption
    if len(captions) < len(split):
        entries.report("unparsable", None, f"list must have {len(split)} captions, got {len(captions)}")
    return Texts(captions.get(image, "") for image in range(len(split)))


# Lists


def _find(root: Path, stem: str) -> Path | None:
    paths = (root / f"{stem}.txt", root / f"{stem}.txt.gz")
    return next((path for path in paths if path.is_file()), None)


def _path(root: Path, stem: str) -> Path:
    return _find(root, stem) or root / f"{stem}.txt"


class _List(TextList):
    """A list, if it is there."""

    def __init__(self, root: Path, stem: str, problems: list[Problem]) -> None:
        super().__init__(_path(root, stem), problems)
        self.there = _find(root, stem) is not None
        self.ids: list[tuple[int, int]] = []  # line, image id

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return super().__iter__() if self.there else iter(())

    def integers(self, pattern: str, length: int | None) -> Iterator[tuple[int, list[int]]]:
        """Yield the line and its integers; of a list with ids the first is noted as an id."""
        for line, text in self:
            words = text.split()
            if (len(words) != length if length else len(words) % 2 == 0) or not all(map(_is_integer, words)):
                self.report("unparsable", line, f"line must be '{pattern}', got {brief(text)}")
                continue
            row = [int(word) for word in words]
            if pattern.startswith("id"):
                self.ids.append((line, row[0]))
            yield line, row

    def check_ids(self, images: int, what: str = "id") -> None:
        for line, image in self.ids:
            self.check(line, what, image, images)

    def check(self, line: int, what: str, value: int, end: int) -> bool:
        if value >= end:
            self.report("out of range", line, f"{what} must be from 0 to {end - 1}, got {value}")
        return value < end


def _is_integer(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 9  # fits in 32 bits


def _read_filenames(root: Path, name: str, problems: list[Problem]) -> Texts | None:
    entries = _List(root, f"filenames_{name}", problems)
    if not entries.there:
        return None
    filenames = []
    for line, filename in entries:
        problem = filename_problem(filename, root)
        if problem is not None:
            entries.report("unparsable", line, problem)
        filenames.append(filename)
    return Texts(filenames)


def _read_triples(entries: _List, counts: tuple[int, ...]) -> Ints:
    rows = []
    for line, row in entries.integers("id attribute value", 3):
        _, a, v = row
        if entries.check(line, "attribute", a, len(counts)) and entries.check(
            line, f"value of attribute {a}", v, counts[a]
        ):
            rows.append(row)
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _check_box(entries: _List, line: int, box: list[int]) -> bool:
    x0, y0, x1, y1 = box
    if x0 >= x1 or y0 >= y1:
        entries.report("out of range", line, f"box must have x0 < x1 and y0 < y1, got {x0} {y0} {x1} {y1}")
        return False
    return True


def _read_boxes(root: Path, name: str, images: int, problems: list[Problem]) -> Ints | None:
    entries = _List(root, f"bbox_{name}", problems)
    if not entries.there:
        return None
    lines = 0
    boxes = []
    for line, box in entries.integers("x0 y0 x1 y1", 4):
        if _check_box(entries, line, box):
            boxes.append(box)
        lines = line
    if lines != images:
        entries.report("unparsable", None, f"list must have {images} lines, one for each image, got {lines}")
    return np.array(boxes, dtype=np.int32).reshape(-1, 4)


# Labels

Rows = dict[int, tuple[int, list[tuple[int, int]]]]  # image id to its line and (attribute, value) pairs


def _read_label_rows(entries: _List) -> Rows:
    rows: Rows = {}
    for line, (image, *flat) in entries.integers("id attribute value attribute value ...", None):
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        if image in rows:
            first = rows[image][0]
            entries.report("unparsable", line, f"id must occur once, got {image} in line {first} too")
        elif len(set(pairs)) < len(pairs):
            entries.report("unparsable", line, f"labels must differ, got {brief(flat)}")
        else:
            rows[image] = line, pairs
    return rows


def _check_labels(rows: Rows, counts: tuple[int, ...], entries: _List) -> None:
    for line, pairs in rows.values():
        for a, v in pairs:
            if entries.check(line, "attribute", a, len(counts)):
                entries.check(line, f"value of attribute {a}", v, counts[a])


def _numbered_across(rows: Rows, counts: tuple[int, ...]) -> bool:
    """Whether attributes count from 1 and values across attributes, so that each has one attribute."""
    pairs = {pair for _, row in rows.values() for pair in row}
    if all(a < len(counts) and v < counts[a] for a, v in pairs):
        return False
    attributes, values = {a for a, _ in pairs}, {v for _, v in pairs}
    one_attribute_each = len(values) == len(pairs) and max(values) < sum(counts)
    return one_attribute_each and min(attributes) >= 1 and max(attributes) <= len(counts)


def _renumber(rows: Rows, triples: Ints, counts: tuple[int, ...], entries: _List) -> Rows | None:
    """Bring labels numbered across attributes to the numbers of the query and candidate lists.

    Every image of those lists carries the label that the list names, so the labels that all images of a value
    share narrow down which of them it is. Values that occur in no list get the numbers that are left, in
    order. None where the lists contradict the labels.
    """
    carried = {image: {(a - 1, v) for a, v in pairs} for image, (_, pairs) in rows.items()}
    possible: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for image, a, v in triples.tolist():
        own = {pair for pair in carried.get(image, set()) if pair[0] == a}
        possible[a, v] = possible.get((a, v), own) & own
    number: dict[tuple[int, int], tuple[int, int]] = {}
    matched = 0
    while possible:
        target = min(possible, key=lambda pair: (len(possible[pair]), pair))
        options = possible.pop(target)
        if not options:
            return None
        source = min(options)
        if len(options) == 1 and matched == len(number):  # no choice, and none before
            matched += 1
        number[source] = target
        for others in possible.values():
            others.discard(source)
    seen = {pair for pairs in carried.values() for pair in pairs}
    for a, count in enumerate(counts):
        free = (v for v in range(count) if (a, v) not in number.values())
        left = sorted(pair for pair in seen - number.keys() if pair[0] == a)
        for source, v in zip(left, free, strict=False):
            number[source] = a, v
    if seen - number.keys():
        return None
    message = (
        "labels are numbered across attributes; the query and candidate lists tell the numbers of "
        f"{matched} of {len(seen)} values, and the others got those left over"
    )
    entries.report("convention", None, message)
    return {image: (line, [number[a - 1, v] for a, v in pairs]) for image, (line, pairs) in rows.items()}
