"""Looks for everything that is wrong with a data set: its lists, and every image fully decoded."""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import placket.data
from placket import _C
from placket.data.dataset import Dataset, Problem, Split

__all__ = ["VerifyReport", "verify"]

_SHOWN = 20  # rows of each kind in the table
_THUMBNAIL = 16
_BLOCK = 1024
_ASPECTS = 0.03  # by which a picture's aspect ratio may change when it is made smaller, as a logarithm


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found."""

    path: str
    images: dict[str, int] = field(default_factory=dict)
    """How many images each split lists."""
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the data set can be used: there may be warnings, but no errors."""
        return all(problem.severity != "error" for problem in self.problems)

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return every problem as {"severity", "kind", "file", "line" (from 1, or None), "message"}."""
        return [{"severity": problem.severity, **asdict(problem)} for problem in self.problems]

    def table(self) -> str:
        """Return the report for a person, at most twenty lines of each kind of problem."""
        counts = ", ".join(f"{split} {count}" for split, count in self.images.items())
        rows = [f"{self.path}: {sum(self.images.values())} images ({counts})"]
        for kind, count in Counter(problem.kind for problem in self.problems).items():
            found = [problem for problem in self.problems if problem.kind == kind]
            rows.append(f"{found[0].severity}: {kind} ({count})")
            rows += [f"  {problem}" for problem in found[:_SHOWN]]
            if count > _SHOWN:
                rows.append(f"  and {count - _SHOWN} more (--json lists all)")
        rows.append("ok" if self.ok else "not usable as it is")
        return "\n".join(rows)


def verify(data: Dataset | str | os.PathLike[str]) -> VerifyReport:
    """Read every list of a data set, or of the one at a path, and decode every image.

    Errors are list lines that do not parse, numbers out of range, missing and damaged images, and what makes
    a score wrong: a file that two splits list ("in two splits"), and the same product or the same pixels in
    two splits ("leak"). Each mask of regions must be there, of its image's size, and have a pixel of
    each region. Warnings are the same pixels twice in a split ("duplicate"), attributes with one
    value only, queries without an answer, and pictures that look like one photograph saved twice, in another
    quality or size ("near duplicate"): their thumbnails of 16 x 16 pixels differ by less than 2.5 grey levels
    (root mean square).

    Raises:
        DatasetError: the folder is no data set at all.
    """
    if not isinstance(data, Dataset):
        data = placket.data.open(data)
    images: dict[str, int] = {}
    problems: list[Problem] = []
    seen = _Seen(data.shared_images)
    for name in data.splits:
        split, found = data.inspect(name)
        images[name] = len(split)
        if split.filenames:
            found += _check_images(split, {p.line for p in found if p.file == split.source}, seen)
        regions = data._read_region_split(split, [])
        if regions is not None and regions.masks is not None:
            found += _check_masks(regions, seen.sizes)
        problems += found
    # A list of all splits tells in each what is wrong with it.
    return VerifyReport(str(data.place), images, (*dict.fromkeys(problems), *seen.near_duplicates()))


@dataclass(frozen=True)
class _Place:
    """Where an image is listed."""

    split: Split
    image: int

    @property
    def filename(self) -> str:
        return self.split.filenames[self.image]

    def problem(self, kind: str, message: str) -> Problem:
        return Problem(kind, self.split.source, self.split.line(self.image), message)

    def __str__(self) -> str:
        line = self.split.line(self.image)
        return f"{self.split.source}{'' if line is None else f':{line}'} ({self.filename})"


@dataclass(frozen=True)
class _Look:
    """What is kept of an image's pixels."""

    digest: bytes
    thumbnail: NDArray[np.uint8]  # [16, 16, 3]
    size: tuple[int, int]  # height, width

    @property
    def aspect(self) -> float:
        return self.size[1] / self.size[0]


class _Seen:
    """The images so far."""

    def __init__(self, shared: bool) -> None:
        self._shared = shared
        self._by_name: dict[str, _Place] = {}
        self._by_pixels: dict[bytes, _Place] = {}
        self.sizes: dict[str, tuple[int, int]] = {}  # height, width by file name
        # Of images whose pixels were new.
        self._places: list[_Place] = []
        self._looks: list[_Look] = []

    def add_name(self, place: _Place) -> Problem | None:
        first = self._by_name.setdefault(place.filename, place)
        if first.split is place.split or self._shared:
            return None
        message = f"image {place.filename} must be in one split, got it in {first} too"
        return place.problem("in two splits", message)

    def add_look(self, place: _Place, look: _Look) -> Problem | None:
        self.sizes[place.filename] = look.size
        first = self._by_pixels.setdefault(look.digest, place)
        if first is place:
            self._places.append(place)
            self._looks.append(look)
            return None
        if first.filename == place.filename and (self._shared or first.split is not place.split):
            return None  # told by its name, or right
        kind = "duplicate" if first.split is place.split else "leak"
        message = f"image {place.filename} must be there once, got the same pixels in {first}"
        return place.problem(kind, message)

    def near_duplicates(self) -> list[Problem]:
        if not self._places:
            return []
        problems = []
        for first, second in near_pairs(np.stack([look.thumbnail for look in self._looks])):
            if abs(math.log(self._looks[first].aspect / self._looks[second].aspect)) > _ASPECTS:
                continue
            place = self._places[second]
            message = f"image {place.filename} looks like the same photograph as {self._places[first]}"
            problems.append(place.problem("near duplicate", message))
        return problems


def _check_images(split: Split, skipped: set[int | None], seen: _Seen) -> list[Problem]:
    """Decode all images but those on skipped lines."""
    problems = []
    images = [
        image for image in range(len(split)) if split.line(image) is None or split.line(image) not in skipped
    ]
    sources = replace(split, boxes=None).image_list()  # boxes may be wrong, and are not needed
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # decoding holds no lock of Python's
        results = threads.map(functools.partial(_look_at, sources), images)
        for image, result in zip(images, results, strict=True):
            place = _Place(split, image)
            problems.append(seen.add_name(place))
            if isinstance(result, Exception):
                missing = split.store is None and not os.path.exists(sources.path(image))
                kind = "missing" if missing else "damaged"
                problems.append(place.problem(kind, f"image must be readable, got {result}"))
            else:
                problems.append(seen.add_look(place, result))
    return [problem for problem in problems if problem is not None]


def _look_at(images: _C.ImageList, image: int) -> _Look | Exception:
    try:
        pixels = images.decode(image)
    except RuntimeError as error:
        return error
    shape = b"%dx%d" % pixels.shape[:2]
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16, person=shape).digest()
    thumbnail = Image.fromarray(pixels).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BILINEAR)
    return _Look(digest, np.asarray(thumbnail), (pixels.shape[0], pixels.shape[1]))


def _check_masks(regions: Split, sizes: Mapping[str, tuple[int, int]]) -> list[Problem]:
    """Read every mask; ``sizes`` has height and width of the images that can be read, by file name."""
    assert regions.masks is not None
    rows: dict[str, list[int]] = {}
    for row, filename in enumerate(regions.masks.filenames):
        rows.setdefault(filename, []).append(row)
    problems = []
    for filename, own in rows.items():
        path = os.path.join(regions.root, filename)
        try:
            picture = _C.decode_mask(path)
        except RuntimeError as error:
            kind = "damaged" if os.path.exists(path) else "missing"
            problems.append(Problem(kind, path, None, f"mask must be readable, got {error}"))
            continue
        image = regions.filenames[own[0]]
        height, width = sizes.get(image, picture.shape)
        if picture.shape != (height, width):
            got = f"{picture.shape[1]} x {picture.shape[0]}"
            message = f"mask must have the {width} x {height} pixels of {image}, got {got}"
            problems.append(Problem("out of range", path, None, message))
        for row in own:
            if not regions.masks.shown(row, picture).any():
                message = f"mask must have a pixel of region {regions.masks.numbers[row]}, got none"
                problems.append(Problem("out of range", path, None, message))
    return problems


def near_pairs(thumbnails: NDArray[np.uint8], limit: float = 2.5) -> list[tuple[int, int]]:
    """Return the pairs of thumbnails that differ by less than ``limit`` grey levels, root mean square.

    Every pair is compared, by one product of matrices, of averages over 2 x 2 pixels and the colours: they
    never differ by more than what they are averages of. 200,000 images are about 10^13 operations.

    Args:
        thumbnails: ``[n, 16, 16, 3]``.

    Returns:
        Pairs in order, the smaller number first.
    """
    count, half = len(thumbnails), _THUMBNAIL // 2
    means = thumbnails.reshape(count, half, 2, half, 2, 3).mean((2, 4, 5), dtype=np.float32)
    rows = torch.from_numpy(means.reshape(count, -1) - 127.5)
    squares = rows.square().sum(1)
    most = limit**2 * rows.shape[1] + 1  # what rounding may add to the sums, and more
    pairs = []
    for begin in range(0, count, _BLOCK):
        block = slice(begin, begin + _BLOCK)
        distances = squares[block, None] + squares[begin:] - 2 * rows[block] @ rows[begin:].T
        first, second = torch.nonzero(distances < most, as_tuple=True)
        close = first < second
        for i, j in zip((first[close] + begin).tolist(), (second[close] + begin).tolist(), strict=True):
            difference = thumbnails[i].astype(np.float64) - thumbnails[j]
            if np.sqrt(np.mean(difference**2)) < limit:
                pairs.append((i, j))
    return pairs
