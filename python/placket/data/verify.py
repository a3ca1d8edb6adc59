"""Looks for everything that is wrong with a data set: its lists, and every image fully decoded."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import placket.data
from placket import _C
from placket.data.dataset import Dataset, Problem, Split

__all__ = ["VerifyReport", "verify"]

_SHOWN = 20  # rows of each kind in the table


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

    Found are: list lines that do not parse, numbers out of range, missing and damaged images, images and
    products in two splits, and as warnings images that are there twice (the same pixels, also in two splits),
    attributes with one value only and queries without an answer.

    Raises:
        DatasetError: the folder is no data set at all.
    """
    if not isinstance(data, Dataset):
        data = placket.data.open(data)
    images: dict[str, int] = {}
    problems: list[Problem] = []
    seen: dict[bytes, str] = {}
    for name in data.splits:
        split, found = data.inspect(name)
        images[name] = len(split)
        if split.filenames:
            found += _check_images(split, {p.line for p in found if p.file == split.source}, seen)
        problems += found
    # A list of all splits tells what is wrong with it in each.
    return VerifyReport(str(data.place), images, tuple(dict.fromkeys(problems)))


def _check_images(split: Split, skipped: set[int | None], seen: dict[bytes, str]) -> list[Problem]:
    """Decode all images but those on skipped lines; `seen` maps hashes of pixels to where they were first."""
    problems = []
    images = [
        image for image in range(len(split)) if split.line(image) is None or split.line(image) not in skipped
    ]
    sources = split.image_list()
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # decoding holds no lock of Python's
        results = threads.map(functools.partial(_hash_pixels, sources), images)
        for image, result in zip(images, results, strict=True):
            line = split.line(image)
            if isinstance(result, Exception):
                missing = split.store is None and not os.path.exists(sources.path(image))
                kind = "missing" if missing else "damaged"
                problems.append(Problem(kind, split.source, line, f"image must be readable, got {result}"))
                continue
            place = f"{split.source}{'' if line is None else f':{line}'} ({split.filenames[image]})"
            first = seen.setdefault(result, place)
            if first != place:
                message = f"image {split.filenames[image]} must be there once, got the same pixels in {first}"
                problems.append(Problem("duplicate", split.source, line, message))
    return problems


def _hash_pixels(images: _C.ImageList, image: int) -> bytes | Exception:
    try:
        pixels = images.decode(image)
    except RuntimeError as error:
        return error
    return hashlib.blake2b(pixels.tobytes(), digest_size=16, person=b"%dx%d" % pixels.shape[:2]).digest()
