from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

import placket.data
from placket import _C
from placket.data import (
    Augment,
    ColorJitter,
    GaussianBlur,
    Loader,
    Preprocess,
    RandomCrop,
    RandomErasing,
    Split,
)

Photograph = Callable[..., NDArray[np.uint8]]
LEVELS = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}


@pytest.fixture
def train(layout: Path) -> Split:
    return placket.data.open(layout).split("train")


def every_colour() -> NDArray[np.uint8]:
    """A lattice of 17 levels a channel, and all greys."""
    levels = np.array([*range(0, 256, 17), 254], dtype=np.uint8)
    lattice = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 17, 3)
    greys = np.repeat(np.arange(255, dtype=np.uint8).reshape(-1, 17, 1), 3, axis=2)
    return np.concatenate([lattice, greys])


def hue_by_pillow(pixels: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """torchvision.transforms.functional.adjust_hue on a PIL image."""
    h, s, v = Image.fromarray(pixels).convert("HSV").split()
    turned = np.asarray(h) + np.array(int(share * 255)).astype(np.uint8)
    return np.asarray(Image.merge("HSV", (Image.fromarray(turned), s, v)).convert("RGB"))


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.75, 1.0, 1.4, 2.5])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (_C.adjust_brightness, ImageEnhance.Brightness),
        (_C.adjust_contrast, ImageEnhance.Contrast),
        (_C.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_enhancing_equals_pillow(ours: Any, theirs: Any, factor: float, photograph: Photograph) -> None:
    for pixels in (every_colour(), photograph(31, 20)):
        expected = theirs(Image.fromarray(pixels)).enhance(factor)
        np.testing.assert_array_equal(ours(pixels, factor), np.asarray(expected))


@pytest.mark.parametrize("share", [-0.5, -0.21, 0.0, 0.003, 0.1, 0.33, 0.5])
def test_hue_equals_pillow(share: float, photograph: Photograph) -> None:
    for pixels in (every_colour(), photograph(31, 20)):
        np.testing.assert_array_equal(_C.adjust_hue(pixels, share), hue_by_pillow(pixels, share))


def inputs(split: Split, augment: Augment, size: int = 33, epochs: int = 1, **options: Any) -> torch.Tensor:
    loader = Loader(
        split, batch=6, shuffle=False, preprocess=Preprocess(size=size, **LEVELS), augment=augment, **options
    )
    return torch.cat([batch.images for _ in range(epochs) for batch in loader])


def test_jitter_changes_the_picture_before_it_is_resized(train: Split) -> None:
    augment = Augment(color_jitter=ColorJitter(0.4, 0.4, 0.4, 0.1), grayscale=0.3)
    loader = Loader(train, batch=6, shuffle=False, preprocess=Preprocess(size=16, **LEVELS), augment=augment,
                    keep_pixels=True)  # fmt: skip
    (batch,) = loader
    for row, (offset, (height, width)) in enumerate(zip(batch.offsets, batch.sizes.tolist(), strict=True)):
        picture = batch.pixels[offset : offset + height * width * 3].view(height, width, 3).numpy()
        again = _C.prepare_image(picture, preprocess=Preprocess(size=16, **LEVELS))
        torch.testing.assert_close(batch.images[row], again.images[0], rtol=0, atol=0)
    assert torch.equal(batch.images, inputs(train, augment, 16))
    assert not torch.equal(batch.images, inputs(train, Augment(), 16))


def test_jitter_and_grayscale_keep_their_probabilities(train: Split) -> None:
    plain = inputs(train, Augment(), 8)
    for augment in (Augment(color_jitter=ColorJitter(brightness=0.9, p=0.25)), Augment(grayscale=0.25)):
        changed = inputs(train, augment, 8, epochs=100).reshape(100, 6, -1)
        share = (changed != plain.reshape(6, -1)).any(2).double().mean()
        assert abs(share - 0.25) < 5 * (0.25 * 0.75 / 600) ** 0.5
    grey = inputs(train, Augment(grayscale=1.0), 8)
    assert (grey.max(1).values - grey.min(1).values).abs().max() < 1e-4


@pytest.mark.parametrize(("kernel", "size"), [(9, 33), (5, 12), (23, 7), (3, 1)])
def test_blur_is_a_gaussian(train: Split, kernel: int, size: int) -> None:
    sigma = 1.7
    ours = inputs(train, Augment(blur=GaussianBlur(kernel, (sigma, sigma), p=1.0)), size)
    expected = inputs(train, Augment(), size).double()
    x = torch.arange(kernel, dtype=torch.double) - kernel // 2
    weights = (-0.5 * (x / sigma) ** 2).exp()
    weights = (weights / weights.sum()).expand(3, 1, 1, kernel)
    radius = kernel // 2
    for axis in (2, 3):
        places = torch.arange(-radius, size + radius)
        if size == 1:
            places = places * 0
        while ((places < 0) | (places >= size)).any():
            places = torch.where(places < 0, -places, places)
            places = torch.where(places >= size, 2 * (size - 1) - places, places)
        padded = expected.index_select(axis, places)
        expected = F.conv2d(padded, weights if axis == 3 else weights.mT, groups=3)
    # Levels up to 255 in float32, summed over a kernel twice.
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-3)


def test_erasing_leaves_a_rectangle(train: Split) -> None:
    size, plain = 40, inputs(train, Augment(), 40)
    erasing = RandomErasing(p=0.5, scale=(0.1, 0.2), ratio=(0.5, 2.0), value=-7.0)
    erased = 0
    for changed in inputs(train, Augment(erasing=erasing), size, epochs=50).reshape(50, 6, 3, size, size):
        for image, before in zip(changed, plain, strict=True):
            gone = (image == -7).all(0)
            assert torch.equal(image[:, ~gone], before[:, ~gone])
            if not gone.any():
                continue
            erased += 1
            rows, columns = gone.any(1).nonzero(), gone.any(0).nonzero()
            height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
            assert gone.sum() == height * width
            # Sides are rounded by half a pixel at most.
            assert 0.09 * size**2 < height * width < 0.22 * size**2
            assert 0.45 < height / width < 2.2
    assert abs(erased - 150) < 5 * (300 / 4) ** 0.5


def shifted(image: torch.Tensor, dx: int, dy: int, padding: int) -> torch.Tensor:
    """torchvision's Pad and crop of one input, [3, size, size]."""
    size = image.shape[-1]
    padded = F.pad(image, (padding,) * 4)
    return padded[:, padding + dy : padding + dy + size, padding + dx : padding + dx + size]


@pytest.mark.parametrize("arithmetic", ["pillow", "float"])
def test_random_crop_is_padding_and_crop(tmp_path: Path, photograph: Photograph, arithmetic: str) -> None:
    """Nothing is interpolated in pictures as large as the input, so the bits are torchvision's."""
    size, padding = 20, 3
    for i, name in enumerate("abc"):
        (tmp_path / name).mkdir()
        Image.fromarray(photograph(size, size, i)).save(tmp_path / name / "0.png")
    split = placket.data.open(tmp_path).split("train")
    preprocess = Preprocess(size=size, arithmetic=arithmetic, **LEVELS)

    def load(augment: Augment) -> torch.Tensor:
        loader = Loader(split, batch=len(split), shuffle=False, preprocess=preprocess, augment=augment)
        return torch.stack([batch.images for _ in range(100) for batch in loader])

    plain = load(Augment())[0]
    moved = load(Augment(random_crop=RandomCrop(padding=padding)))
    found = []
    for epoch in moved:
        for row in range(len(split)):
            places = [
                (dx, dy)
                for dx in range(-padding, padding + 1)
                for dy in range(-padding, padding + 1)
                if torch.equal(epoch[row], shifted(plain[row], dx, dy, padding))
            ]
            assert len(places) == 1
            found += places
    for axis in (0, 1):
        counts = np.bincount([place[axis] + padding for place in found], minlength=2 * padding + 1)
        share = 1 / len(counts)
        assert len(counts) == 2 * padding + 1
        assert (abs(counts - len(found) * share) < 5 * (len(found) * share * (1 - share)) ** 0.5).all()


def test_random_crop_moves_a_box_over_the_photo(train: Split) -> None:
    """The picture keeps its size, and what the loader kept of it gives the input."""
    preprocess = Preprocess(size=16, **LEVELS)
    augment = Augment(crop_scale=0.5, random_crop=RandomCrop(padding=5))
    loader = Loader(train, batch=6, shuffle=False, preprocess=preprocess, augment=augment, keep_pixels=True)
    alone = Loader(train, batch=6, shuffle=False, preprocess=preprocess, augment=Augment(crop_scale=0.5),
                   keep_pixels=True)  # fmt: skip
    (batch,), (still,) = loader, alone
    assert torch.equal(batch.sizes, still.sizes)  # drawn before the shift
    assert not torch.equal(batch.images, still.images)
    assert (batch.images > 0).all(1).double().mean() > 0.9  # hardly any zeros: the photo goes on around a box
    for row, (offset, (height, width)) in enumerate(zip(batch.offsets, batch.sizes.tolist(), strict=True)):
        picture = batch.pixels[offset : offset + height * width * 3].view(height, width, 3).numpy()
        again = _C.prepare_image(picture, preprocess=preprocess)
        torch.testing.assert_close(batch.images[row], again.images[0], rtol=0, atol=0)


def test_a_picture_may_lie_beside_the_image(tmp_path: Path, photograph: Photograph) -> None:
    """A narrow photo on a square leaves room for crops of nothing but zeros."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.maximum(photograph(60, 3), 1)).save(tmp_path / name / "0.png")
    split = placket.data.open(tmp_path).split("train")
    preprocess = Preprocess(size=8, fit="pad", **LEVELS)
    for augment in (Augment(crop_scale=0.05), Augment(random_crop=RandomCrop(padding=8))):
        loader = Loader(split, batch=2, preprocess=preprocess, augment=augment, keep_pixels=True)
        batches = [batch for _ in range(60) for batch in loader]
        empty = [batch for batch in batches if batch.pixels.max() == 0]
        assert 0 < len(empty) < len(batches)
        assert all(batch.images.abs().max() == 0 for batch in empty)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"random_crop": RandomCrop(padding=-1)}, r"random_crop.padding must be in \[0, 8192\], got -1"),
        ({"flip": 1.5}, r"flip must be in \[0, 1\], got 1.5"),
        ({"crop_scale": 0}, r"crop_scale must be in \(0, 1\], got 0"),
        ({"grayscale": -1}, r"grayscale must be in \[0, 1\], got -1"),
        ({"color_jitter": ColorJitter(hue=0.6)}, r"color_jitter.hue must be in \[0, 0.5\], got 0.6"),
        ({"color_jitter": ColorJitter(contrast=-1)}, "color_jitter.contrast must be at least 0, got -1"),
        ({"blur": GaussianBlur(kernel_size=4)}, "blur.kernel_size must be odd, got 4"),
        ({"blur": GaussianBlur(sigma=(2, 1))}, "blur.sigma must be two numbers .*, got 2 and 1"),
        ({"erasing": RandomErasing(scale=(0.5, 1.5))}, r"erasing.scale must be two numbers in \(0, 1\]"),
        ({"erasing": RandomErasing(p=2)}, r"erasing.p must be in \[0, 1\], got 2"),
    ],
    ids=str,
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Augment: {message}"):
        Augment(**arguments)
