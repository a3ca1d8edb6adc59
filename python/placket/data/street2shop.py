"""Reader of Exact Street2Shop (Hadi Kiapour et al., ICCV 2015)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from placket.data.columns import Columns
from placket.data.dataset import WHOLE_IMAGE, Dataset, DatasetError, Problem, Split, brief, is_text
from placket.data.lists import JsonList, find_images, finish, report_unmatched
from placket.schema import AttributeSchema

__all__ = ["Street2ShopDataset"]

_SPLITS = ("train", "test")
_LISTS = ("meta/json", "json", "meta/meta/json")
_FOLDERS = ("photos", "images")
_SHOP, _STREET = 0, 1


class Street2ShopDataset(Dataset):
    """``{train,test}_pairs_{category}.json`` and ``retrieval_{category}.json`` in ``meta/json/`` of a folder.

    ``json/`` and ``meta/meta/json/`` are looked at too. The first are lists of objects of "photo", "product"
    (numbers) and "bbox" ("left", "top", "width", "height"), the street photos; the second of "photo" and
    "product", the shop photos. A category with pairs needs its shop photos.

    Photo 12 is ``12.jpg`` or ``000000012.jpg``, or of another suffix, in ``photos/`` or ``images/``, the
    first of them with images; one that is absent counts as ``000000012.jpg``.

    An image of a split is a photo of a product in a category: a street photo of two products is two images,
    each with its box. Shop photos have no boxes. Identities are products within a category (the lists do not
    say whether a number is the same product in another), the attribute is "category". "train" holds the pairs
    and the shop photos of their products, "test" the pairs and all shop photos of their categories, those of
    training products included, as ``gallery_images``; retrieval is within the category of the query.
    """

    shared_images = True
    LOOKED_FOR: ClassVar[str] = "meta/json/{train,test}_pairs_{category}.json (Street2Shop)"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Look which lists are there.

        Raises:
            DatasetError: there are no pairs.
        """
        path = Path(root)
        self._found = {(split, category): file for split, category, file in _pairs(path)}
        if not self._found:
            raise DatasetError(f"{path}: data set must hold {self.LOOKED_FOR}, got none")
        self._products: dict[tuple[str, int], int] = {}
        self._parts: dict[str, tuple[Split, list[Problem]]] = {}
        schema = AttributeSchema.of({"category": sorted({category for _, category in self._found})})
        super().__init__(
            path, schema, tuple(s for s in _SPLITS if any(s == split for split, _ in self._found))
        )

    @staticmethod
    def recognises(root: str | os.PathLike[str]) -> bool:
        """Return whether a list of pairs is in a folder."""
        return any(True for _ in _pairs(Path(root)))

    @property
    def identities(self) -> tuple[tuple[str, int], ...]:
        """What ``Split.identities`` counts: category and product."""
        self._read(self.splits[0])
        return tuple(self._products)

    def _read(self, name: str) -> tuple[Split, list[Problem]]:
        if not self._parts:  # all together, so that products have the same numbers whatever is asked first
            files = find_images(self.root, _FOLDERS)
            self._parts = {split: self._read_split(split, *files) for split in self.splits}
        split, problems = self._parts[name]
        return split, [*problems]

    def _read_split(self, name: str, folder: str, files: Mapping[str, str]) -> tuple[Split, list[Problem]]:
        problems: list[Problem] = []
        columns = Columns()
        for number, category in enumerate(self.schema[0].values):
            if (name, category) not in self._found:
                continue

            def add(photo: _Photo, domain: int, number: int = number, category: str = category) -> None:
                stem = str(photo.number) if str(photo.number) in files else f"{photo.number:09}"
                filename = f"{folder}/{files.get(stem, f'{stem}.jpg')}"
                identity = self._products.setdefault((category, photo.product), len(self._products))
                columns.add(filename, [(0, number)], identity=identity, domain=domain, box=photo.box)

            pairs = JsonList(self._found[name, category], problems)
            trained = set() if name == "train" else self._train_products(category)
            products: set[int] = set()
            for entry, photo in _photos(pairs, boxed=True):
                if photo.product in trained:
                    message = f"product {photo.product} must be in one split, got it in train too"
                    pairs.report("leak", entry, message)
                products.add(photo.product)
                add(photo, _STREET)
            shop = JsonList(pairs.path.with_name(f"retrieval_{category}.json"), problems)
            for _, photo in _photos(shop, boxed=False):
                if name == "test" or photo.product in products:
                    add(photo, _SHOP)
        split = Split(
            name=name,
            root=self.root,
            schema=self.schema,
            images=len(columns),
            filenames=columns.filenames,
            labels=columns.labels(self.schema.value_counts),
            boxes=columns.boxes,
            identities=columns.identities,
            domains=columns.domains,
            query_images=np.flatnonzero(columns.domains == _STREET).astype(np.int32),
            gallery_images=np.flatnonzero(columns.domains == _SHOP).astype(np.int32),
            source=str(next(iter(self._found.values())).parent),
            lines=columns.lines,
        )
        if not len(split) and not problems:
            message = f"split '{name}' must have at least one pair, got none"
            problems.append(Problem("unparsable", split.source, None, message))
        report_unmatched(split, problems)
        return finish(split, problems), problems

    def _train_products(self, category: str) -> set[int]:
        if ("train", category) not in self._found:
            return set()
        entries = JsonList(self._found["train", category], [])  # what is wrong is told with "train"
        return {photo.product for _, photo in _photos(entries, boxed=True)}


class _Photo(NamedTuple):
    number: int
    product: int
    box: tuple[int, int, int, int]


def _photos(entries: JsonList, boxed: bool) -> Iterator[tuple[int, _Photo]]:
    """Yield entries and the photos that they are, each once."""
    seen: set[_Photo] = set()
    for entry, row in entries:
        row = row if isinstance(row, dict) else {}
        named = row.get("photo"), row.get("product")
        number, product = (value if type(value) is int and 0 <= value < 2**31 else None for value in named)
        box = _box(row.get("bbox")) if boxed else WHOLE_IMAGE
        if number is None or product is None:
            message = f"photo and product must be whole numbers, got {brief(named)}"
            entries.report("unparsable", entry, message)
        elif box is None:
            want = "left, top, width and height in whole numbers that leave some of the image"
            entries.report("out of range", entry, f"bbox must have {want}, got {brief(row.get('bbox'))}")
        elif _Photo(number, product, box) in seen:
            message = f"photo {number} of product {product} must be there once, got it again"
            entries.report("duplicate", entry, message)
        else:
            seen.add(_Photo(number, product, box))
            yield entry, _Photo(number, product, box)


def _box(bbox: object) -> tuple[int, int, int, int] | None:
    """Return a box, cut where the image begins, or None where it is none."""
    found = [bbox.get(side) for side in ("left", "top", "width", "height")] if isinstance(bbox, dict) else []
    sides = [side for side in found if type(side) is int and abs(side) < 2**30]
    if len(sides) < 4:
        return None
    left, top, width, height = sides
    box = max(left, 0), max(top, 0), left + width, top + height
    return box if box[0] < box[2] and box[1] < box[3] else None


def _pairs(root: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield split, category and path of the lists of pairs in the first folder that has any."""
    for folder in _LISTS:
        found = []
        for path in sorted((root / folder).glob("*_pairs_*.json")):
            match = re.fullmatch(r"(train|test)_pairs_(.+)", path.stem)
            if match and path.is_file() and is_text(path.name):
                found.append((match[1], match[2], path))
        if found:
            yield from found
            return
