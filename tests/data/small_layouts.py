"""Writes small data sets and draws their images."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from placket.data import Split


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def draw(split: Split) -> None:
    """Draw the images of a split, of 30 x 40 pixels that all differ."""
    for path in split.paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(zlib.crc32(path.encode())).integers(
            0, 256, (40, 30, 3), dtype=np.uint8
        )
        Image.fromarray(pixels).save(path)
