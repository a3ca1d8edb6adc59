"""One photograph through our decoder and resampler and through Pillow's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from placket import _C
from placket.data import Preprocess

FILTERS = ("bilinear", "bicubic", "box", "lanczos")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Window = tuple[int, int, int, int]  # x0, y0, x1, y1


class Difference(NamedTuple):
    decoded: int  # greatest difference of a decoded value, in grey levels
    inputs: int  # prepared inputs
    unequal: int  # of them, those that differ in any bit


def evenly(folder: Path, count: int) -> list[Path]:
    """Return so many of the photographs below a folder, evenly spaced, in the order of their paths."""
    found = sorted(folder.rglob("*.jpg"))
    return [found[i * len(found) // count] for i in range(count)]


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
    pixels: NDArray[np.uint8] = np.array(image)
    scaled = torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)
    return scaled.sub(torch.tensor(MEAN)[:, None, None]).div(torch.tensor(STD)[:, None, None])
