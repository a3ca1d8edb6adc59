"""Whole JPEG files of every kind, small, for the fuzzers to damage: python tests/fuzz/seeds.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Name to mode, (width, height) and options of Pillow's writer.
KINDS: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "444": ("RGB", (40, 33), {"subsampling": "4:4:4"}),
    "422": ("RGB", (33, 40), {"subsampling": "4:2:2"}),
    "420": ("RGB", (47, 35), {"subsampling": "4:2:0", "optimize": True}),
    "tiny": ("RGB", (1, 1), {}),
    "progressive": ("RGB", (40, 48), {"progressive": True, "quality": 40}),
    "progressive-420": ("RGB", (31, 17), {"progressive": True, "subsampling": "4:2:0"}),
    "rgb": ("RGB", (24, 20), {"keep_rgb": True}),
    "grey": ("L", (41, 29), {}),
    "grey-progressive": ("L", (29, 41), {"progressive": True}),
    "cmyk": ("CMYK", (25, 32), {}),
    "cmyk-progressive": ("CMYK", (32, 16), {"progressive": True}),
    "exif": ("RGB", (30, 20), {"orientation": 6}),
    "restarts": ("RGB", (64, 48), {"restart_marker_rows": 1, "subsampling": "4:2:0"}),
    "restarts-444": ("RGB", (48, 24), {"restart_marker_blocks": 2, "subsampling": "4:4:4"}),
    "16-bit-tables": ("RGB", (32, 32), {"quality": 1, "comment": b"a comment"}),
}


def write_seeds(folder: Path) -> list[Path]:
    """Write a file of each kind, the same in every run, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (name, (mode, (width, height), options)) in enumerate(KINDS.items()):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((width, height))
        pixels = np.asarray(coarse).astype(int) + rng.integers(-9, 10, (height, width, 3))
        options = dict(options)
        if (orientation := options.pop("orientation", None)) is not None:
            options["exif"] = Image.Exif()
            options["exif"][0x0112] = orientation
        paths.append(folder / f"{name}.jpg")
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert(mode).save(paths[-1], **options)
    return paths


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
