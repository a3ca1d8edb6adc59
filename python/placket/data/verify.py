"""Looks for everything that is wrong with a data set: its lists, and every image fully decoded."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from placket import _C
from placket.data.asen import AsenDataset, Problem, Split, read_captions, read_regions, read_split

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


def verify(path: str | os.PathLike[str]) -> VerifyReport:
    """Read every list of a data set and decode every image.

    Found are: list lines that do not parse, numbers out of range, missing and damaged images, and as warnings
    images that are there twice (the same pixels, also in two splits) and attributes with one value only.

    Raises:
        DatasetError: the folder is no data set at all.
    """
    data = AsenDataset(path)
    images: dict[str, int] = {}
    problems: list[Problem] = []
    seen: dict[bytes, str] = {}
    for name in data.splits:
        split, found = read_split(data.root, name, data.schema)
        read_regions(data.root, split, found)
        read_captions(data.root, split, found)
        images[name] = len(split)
        if split.filenames:
            found += _check_images(split, {p.line for p in found if p.file == split.filenames_file}, seen)
        problems += found
    return VerifyReport(str(Path(path)), images, tuple(problems))


def _check_images(split: Split, skipped: set[int | None], seen: dict[bytes, str]) -> list[Problem]:
    """Decode all images but those on skipped lines; `seen` maps hashes of pixels to where they were first."""
    problems = []
    lines = [line for line in range(1, len(split) + 1) if line not in skipped]
    paths = split.paths
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # decoding holds no lock of Python's
        results = threads.map(_hash_pixels, [paths[line - 1] for line in lines])
        for line, result in zip(lines, results, strict=True):
            if isinstance(result, Exception):
                kind = "damaged" if os.path.exists(paths[line - 1]) else "missing"
                problems.append(
                    Problem(kind, split.filenames_file, line, f"image must be readable, got {result}")
                )
                continue
            place = f"{split.filenames_file}:{line} ({split.filenames[line - 1]})"
            first = seen.setdefault(result, place)
            if first != place:
                message = (
                    f"image {split.filenames[line - 1]} must be there once, got the same pixels in {first}"
                )
                problems.append(Problem("duplicate", split.filenames_file, line, message))
    return problems


def _hash_pixels(path: str) -> bytes | Exception:
    try:
        pixels = _C.decode_file(path)
    except RuntimeError as error:
        return error
    return hashlib.blake2b(pixels.tobytes(), digest_size=16, person=b"%dx%d" % pixels.shape[:2]).digest()
