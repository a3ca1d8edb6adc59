"""Compare 3,000 real photographs with Pillow in every bit; exit 1 where they differ.

Decoding may differ by one grey level where Pillow's libjpeg is of another version; how often is printed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from photographs import evenly, folder
from PIL import Image, features

from placket import _C
from placket.data import Preprocess

COUNTS = {"deepfashion-fine6": 1097, "hm": 1097, "co-parsing/photos": 806}
FILTERS = ("bilinear", "bicubic", "box", "lanczos")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Window = tuple[int, int, int, int]  # x0, y0, x1, y1


class Difference(NamedTuple):
    decoded: int  # greatest difference of a decoded value, in grey levels
    inputs: int  # prepared inputs
    unequal: int  # of them, those that differ in any bit


def compare_with_pillow(path: Path) -> Difference:
    """Compare the decoded photograph, then inputs prepared from Pillow's pixels by every filter.

    Inputs of 96 and 448 pixels (photographs lie between, so down and up) take the whole photograph, those of
    131 pixels two windows of it, wide and tall, padded to squares.
    """
    with Image.open(path) as file:
        image = file.convert("RGB")
    pixels = np.asarray(image)
    decoded = _C.decode_file(str(path), upright=False).astype(int)
    unequal = [
        not torch.equal(_C.prepare_image(pixels, window, inputs).images[0], normalise(expected))
        for inputs, window, expected in cases(image)
    ]
    return Difference(int(np.abs(decoded - pixels).max()), len(unequal), sum(unequal))


def cases(image: Image.Image) -> Iterator[tuple[Preprocess, Window, Image.Image]]:
    """Yield inputs, window and what Pillow makes of them."""
    w, h = image.size
    wide, tall = (w // 9, h // 3, w - w // 7, h // 3 + h // 8), (w // 3, h // 11, w // 3 + w // 5, h - h // 5)
    for interpolation in FILTERS:
        filter = Image.Resampling[interpolation.upper()]
        for size in (96, 448):
            inputs = Preprocess(size=size, mean=MEAN, std=STD, interpolation=interpolation)
            yield inputs, (0, 0, w, h), resize_and_crop(image, size, filter)
        inputs = Preprocess(size=131, fit="pad", mean=MEAN, std=STD, interpolation=interpolation)
        for window in (wide, tall):
            yield inputs, window, square(image, window).resize((131, 131), filter)


def resize_and_crop(image: Image.Image, size: int, filter: Image.Resampling) -> Image.Image:
    """Resize(size) and CenterCrop(size) of torchvision."""
    short = min(image.size)
    w, h = (int(size * side / short) for side in image.size)
    left, top = round((w - size) / 2.0), round((h - size) / 2.0)
    return image.resize((w, h), filter).crop((left, top, left + size, top + size))


def square(image: Image.Image, window: Window) -> Image.Image:
    """Cut the square about a window, as fit "pad" does; zeros outside the image, as Pillow does."""
    x0, y0, x1, y1 = window
    side = max(x1 - x0, y1 - y0)
    left, top = x0 - (side - (x1 - x0)) // 2, y0 - (side - (y1 - y0)) // 2
    return image.crop((left, top, left + side, top + side))


def normalise(image: Image.Image) -> torch.Tensor:
    """ToTensor and Normalize of torchvision."""
    scaled = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
    return scaled.sub(torch.tensor(MEAN)[:, None, None]).div(torch.tensor(STD)[:, None, None])


def main() -> int:
    print(f"Pillow's libjpeg-turbo: {features.version('libjpeg_turbo')}")
    failed = False
    for name, count in COUNTS.items():
        found = [compare_with_pillow(path) for path in evenly(folder(name), count)]
        decoded = Counter(difference.decoded for difference in found)
        inputs, unequal = (sum(d[i] for d in found) for i in (1, 2))
        print(
            f"{name}: {count} photographs, decoded equal {decoded[0]}, one grey level off {decoded[1]}, "
            f"more {count - decoded[0] - decoded[1]}; {inputs} inputs, unequal {unequal}",
            flush=True,
        )
        failed |= max(decoded) > 1 or unequal > 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
