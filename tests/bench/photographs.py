"""The real photographs that benchmarks and checks take, from the folder PLACKET_DATA."""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path(os.environ.get("PLACKET_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


class NoPhotographs(Exception):
    """They are not on this machine."""


def folder(name: str) -> Path:
    """Return the absolute path of a folder in PLACKET_DATA.

    Raises:
        NoPhotographs: it is absent.
    """
    path = (DATA / name).resolve()
    if not path.is_dir():
        raise NoPhotographs(f"PLACKET_DATA must be the folder that holds {name}, got {DATA}")
    return path


def evenly(place: Path, count: int) -> list[Path]:
    """Return so many of the photographs below a folder, evenly spaced, in the order of their paths."""
    found = sorted(place.rglob("*.jpg"))
    return [found[i * len(found) // count] for i in range(count)]
