from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from placket import _C
from placket.data import Preprocess

Photograph = Callable[..., NDArray[np.uint8]]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalise(image: Image.Image) -> torch.Tensor:
    """ToTensor and Normalize of torchvision."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
    return pixels.sub(torch.tensor(MEAN)[:, None, None]).div(torch.tensor(STD)[:, None, None])


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize(size) and CenterCrop(size) of torchvision."""
    w, h = image.size
    w, h = (size, int(size * h / w)) if w <= h else (int(size * w / h), size)
    left, top = round((w - size) / 2.0), round((h - size) / 2.0)
    resized = image.resize((w, h), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


@pytest.mark.parametrize("shape", [(64, 64), (90, 41), (41, 90), (300, 224), (31, 33), (1, 5)], ids=str)
@pytest.mark.parametrize("size", [32, 33, 64])
def test_crop_equals_pillow_and_torchvision_bit_for_bit(
    photograph: Photograph, shape: tuple[int, int], size: int
) -> None:
    pixels = photograph(*shape)
    batch = _C.prepare_image(pixels, preprocess=Preprocess(size=size))
    expected = normalise(resize_and_crop(Image.fromarray(pixels), size))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(batch.images[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(64, 64), (90, 41), (41, 90), (700, 300), (31, 33), (1, 5)], ids=str)
@pytest.mark.parametrize("size", [32, 33, 64, 200])
@pytest.mark.parametrize("filter", ["box", "bilinear", "bicubic", "lanczos"])
def test_every_filter_equals_pillow_bit_for_bit(
    photograph: Photograph, shape: tuple[int, int], size: int, filter: str
) -> None:
    # Hard edges drive bicubic and Lanczos below 0 and above 255.
    pixels = np.where(photograph(*shape) > 128, 255, 0).astype(np.uint8)
    pixels[::3] = photograph(*shape)[::3]
    levels = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    inputs = Preprocess(size=size, fit="pad", interpolation=filter, **levels)
    side = max(shape)
    x0, y0 = -((side - shape[1]) // 2), -((side - shape[0]) // 2)
    square = Image.fromarray(pixels).crop((x0, y0, x0 + side, y0 + side))
    expected = np.asarray(square.resize((size, size), Image.Resampling[filter.upper()]))
    ours = _C.prepare_image(pixels, preprocess=inputs).images[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(np.rint(ours).astype(np.uint8), expected)


def test_every_filter_equals_pillow_without_vector_instructions() -> None:
    """torch's switch turns them off; it is read once, hence another process."""
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "every_filter_equals_pillow_bit"]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("box", [(10, 5, 30, 60), (0, 0, 50, 20), (-5, 40, 12, 99), (49, 79, 50, 80)])
def test_pad_equals_pillow_bit_for_bit(photograph: Photograph, box: tuple[int, int, int, int]) -> None:
    pixels = photograph(80, 50)
    batch = _C.prepare_image(pixels, box, Preprocess(size=24, fit="pad"))
    x0, y0, x1, y1 = max(box[0], 0), max(box[1], 0), min(box[2], 50), min(box[3], 80)
    side = max(x1 - x0, y1 - y0)
    x0, y0 = x0 - (side - (x1 - x0)) // 2, y0 - (side - (y1 - y0)) // 2
    square = Image.fromarray(pixels).crop((x0, y0, x0 + side, y0 + side))  # zeros outside, as Pillow does
    expected = normalise(square.resize((24, 24), Image.Resampling.BILINEAR))
    torch.testing.assert_close(batch.images[0], expected, rtol=0, atol=0)
    assert batch.sizes.tolist() == [[side, side]]
    np.testing.assert_array_equal(batch.pixels.view(side, side, 3).numpy(), np.asarray(square))


@pytest.mark.parametrize(
    ("shape", "box"),
    [((80, 50), None), ((80, 50), (-10, 4, 31, 79)), ((41, 90), (5, 7, 45, 30)), ((1, 5), None)],
    ids=str,
)
def test_squash_equals_pillow_bit_for_bit(
    photograph: Photograph, shape: tuple[int, int], box: tuple[int, int, int, int] | None
) -> None:
    pixels = photograph(*shape)
    batch = _C.prepare_image(pixels, box, Preprocess(size=24, fit="squash"))
    x0, y0, x1, y1 = box or (0, 0, shape[1], shape[0])
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, shape[1]), min(y1, shape[0])
    cut = Image.fromarray(pixels).crop((x0, y0, x1, y1))
    expected = normalise(cut.resize((24, 24), Image.Resampling.BILINEAR))
    torch.testing.assert_close(batch.images[0], expected, rtol=0, atol=0)
    assert batch.sizes.tolist() == [[y1 - y0, x1 - x0]]


def target_pad(image: Image.Image, target_ratio: float) -> Image.Image:
    """TargetPad of CLIP4Cir (Baldrati et al., CVPR Workshops 2022), on Pillow."""
    w, h = image.size
    if max(w, h) / min(w, h) < target_ratio:
        return image
    scaled = max(w, h) / target_ratio
    left, top = max(int((scaled - w) / 2), 0), max(int((scaled - h) / 2), 0)
    return image.crop((-left, -top, w + left, h + top))  # zeros outside


@pytest.mark.parametrize("ratio", [1.0, 1.25, 1.5, 3.0])
@pytest.mark.parametrize(
    "shape", [(64, 64), (90, 41), (41, 90), (80, 64), (79, 64), (83, 64), (31, 33), (1, 5)], ids=str
)
def test_target_pad_equals_clip4cir_on_pillow(
    photograph: Photograph, shape: tuple[int, int], ratio: float
) -> None:
    pixels = photograph(*shape)
    batch = _C.prepare_image(pixels, preprocess=Preprocess(size=24, fit="target_pad", target_ratio=ratio))
    padded = target_pad(Image.fromarray(pixels), ratio)
    expected = normalise(resize_and_crop(padded, 24))
    torch.testing.assert_close(batch.images[0], expected, rtol=0, atol=0)
    assert batch.sizes.tolist() == [[padded.height, padded.width]]
    np.testing.assert_array_equal(batch.pixels.view(padded.height, padded.width, 3), np.asarray(padded))


def test_target_pad_of_a_box_takes_photo_where_there_is_photo(photograph: Photograph) -> None:
    pixels = photograph(80, 50)
    inputs = Preprocess(size=16, fit="target_pad", target_ratio=1.5)
    batch = _C.prepare_image(pixels, (2, 10, 22, 70), inputs)  # 20 x 60: 10 pixels on the left and right
    expected = np.asarray(Image.fromarray(pixels).crop((-8, 10, 32, 70)))
    np.testing.assert_array_equal(batch.pixels.view(60, 40, 3), expected)


def grey_levels(pixels: NDArray[np.uint8], **options: Any) -> NDArray[np.float64]:
    inputs = Preprocess(mean=(0.0,) * 3, std=(1 / 255,) * 3, **options)
    return _C.prepare_image(pixels, preprocess=inputs).images[0].permute(1, 2, 0).double().numpy()


SHAPES = [(64, 64), (90, 41), (41, 90), (700, 300), (31, 33), (1, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [7, 32, 33, 200])
@pytest.mark.parametrize("filter", ["box", "bilinear"])
def test_float_is_within_a_grey_level_of_pillow(
    photograph: Photograph, shape: tuple[int, int], size: int, filter: str
) -> None:
    """Pillow rounds twice by half a level; weights that sum to 1 carry the first rounding on."""
    pixels = np.where(photograph(*shape) > 128, 255, 0).astype(np.uint8)
    pixels[::3] = photograph(*shape)[::3]
    for fit in ("crop", "pad", "squash"):
        exact = grey_levels(pixels, size=size, fit=fit, interpolation=filter)
        ours = grey_levels(pixels, size=size, fit=fit, interpolation=filter, arithmetic="float")
        assert np.abs(ours - exact).max() <= 1.001
        assert not np.array_equal(ours, np.rint(ours)) or min(shape) == 1


@pytest.mark.parametrize("filter", ["bicubic", "lanczos"])
def test_float_with_negative_weights_is_near_pillow(photograph: Photograph, filter: str) -> None:
    """Without black and white that ring, which Pillow clips between the passes too."""
    for shape in SHAPES:
        pixels = 64 + photograph(*shape) // 2
        for size in (7, 33, 200):
            exact = grey_levels(pixels, size=size, interpolation=filter)
            ours = grey_levels(pixels, size=size, interpolation=filter, arithmetic="float")
            # Half a level for each rounding, the first times the sum of the weights' absolute values.
            assert np.abs(ours - exact).max() <= {"bicubic": 1.13, "lanczos": 1.28}[filter]


@pytest.mark.data
@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "lanczos"])
def test_float_is_near_pillow_on_photographs(photographs: Path, filter: str) -> None:
    """Beside corners of black or white, where Pillow clips after each pass, rings differ by more."""
    beyond, count = 0, 0
    for path in sorted((photographs / "deepfashion-fine6").rglob("*.jpg"))[:40]:
        pixels = _C.decode_file(str(path))
        exact = grey_levels(pixels, interpolation=filter)
        ours = grey_levels(pixels, interpolation=filter, arithmetic="float")
        beyond += int((np.abs(ours - exact) > 1.28).sum())
        count += ours.size
    assert count == 40 * 224 * 224 * 3
    assert beyond <= (0 if filter == "bilinear" else 0.002 * count)


@pytest.mark.parametrize("filter", ["box", "bilinear", "bicubic", "lanczos"])
def test_float_is_the_filter_in_double(photograph: Photograph, filter: str) -> None:
    """Against Pillow's 32-bit float images: one channel at a time, no rounding to 8 bits."""
    for shape, size in (((90, 90), 32), ((31, 31), 64), ((200, 200), 33)):
        pixels = 64 + photograph(*shape) // 2
        channels = [
            np.asarray(
                Image.fromarray(pixels[..., c].astype(np.float32)).resize(
                    (size, size), Image.Resampling[filter.upper()]
                )
            )
            for c in range(3)
        ]
        ours = grey_levels(pixels, size=size, interpolation=filter, arithmetic="float")
        np.testing.assert_allclose(ours, np.stack(channels, axis=2), rtol=0, atol=2e-3)


def test_float_has_the_same_bits_without_vector_instructions(photograph: Photograph) -> None:
    code = (
        "import sys, numpy as np; from placket import _C\n"
        "pixels = np.load(sys.argv[1])\n"
        "for filter in ('box', 'bilinear', 'bicubic', 'lanczos'):\n"
        "    inputs = _C.Preprocess(size=50, interpolation=filter, arithmetic='float')\n"
        "    sys.stdout.buffer.write(_C.prepare_image(pixels, preprocess=inputs).images.numpy().tobytes())\n"
    )
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file, photograph(97, 131))
        file.flush()
        outputs = {
            subprocess.run(
                [sys.executable, "-c", code, file.name],
                env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
                capture_output=True,
                check=True,
            ).stdout
            for capability in ("default", "avx2", "avx512")
        }
    assert len(outputs) == 1
    assert len(outputs.pop()) == 4 * 3 * 50 * 50 * 4


def test_margin_is_a_share_of_the_box_and_ends_at_the_image(photograph: Photograph) -> None:
    pixels = photograph(80, 50)
    batch = _C.prepare_image(pixels, (10, 25, 30, 60), Preprocess(size=16, box_margin=0.55))
    assert batch.sizes.tolist() == [[73, 41]]  # 11 pixels on the left and right, 19 above and below
    np.testing.assert_array_equal(batch.pixels.view(73, 41, 3).numpy(), pixels[6:79, 0:41])


def test_a_box_beside_the_image_is_an_error(photograph: Photograph) -> None:
    with pytest.raises(
        ValueError, match=r"box must overlap the image of 50 x 80 pixels, got \[50, 0, 60, 9\]"
    ):
        _C.prepare_image(photograph(80, 50), (50, 0, 60, 9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, r"Preprocess: size must be in \[1, 8192\], got 0"),
        (
            {"fit": "stretch"},
            "Preprocess: fit must be 'crop', 'pad', 'target_pad' or 'squash', got 'stretch'",
        ),
        ({"target_ratio": 0.9}, r"Preprocess: target_ratio must be in \[1, 100\], got 0.9"),
        ({"arithmetic": "exact"}, "Preprocess: arithmetic must be 'pillow' or 'float', got 'exact'"),
        ({"box_margin": -0.1}, "Preprocess: box_margin must be in"),
        ({"interpolation": "cubic"}, "Preprocess: interpolation must be 'bilinear', .* got 'cubic'"),
        ({"orientation": "turn"}, "Preprocess: orientation must be 'apply' or 'ignore', got 'turn'"),
        ({"std": (1.0, 0.0, 1.0)}, "Preprocess: std must be positive, got 0"),
    ],
)
def test_out_of_range(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocess(**arguments)  # type: ignore[arg-type]
