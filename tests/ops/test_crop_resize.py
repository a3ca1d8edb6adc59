from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch import Tensor

from placket import ops, reference

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Height and width of images: one pixel, odd, tall and wide.
SIZES = [(1, 1), (37, 53), (200, 11), (9, 140), (64, 64)]
# Index and box: the image itself, inside, over each border, all beside, one pixel, far larger.
BOXES = [
    *((i, 0, 0, w, h) for i, (h, w) in enumerate(SIZES)),
    (1, 5, 7, 30, 31),
    (1, -10, 3, 20, 30),
    (1, 40, -9, 80, 20),
    (1, 30, 30, 60, 45),
    (1, 60, 0, 90, 20),
    (1, -30, -30, -1, -1),
    (1, 52, 36, 53, 37),
    (1, -200, -300, 300, 250),
    (4, 0, 0, 64, 20),
    (2, 0, 0, 11, 190),
]
OUTPUTS = [(1, 1), (7, 5), (32, 33), (70, 12)]


def batch(device: torch.device, sizes: list[tuple[int, int]] = SIZES) -> dict[str, Tensor]:
    """Images of random bytes, of 0 and 255 only (which reach the ends of the sums), and of 255."""
    images = [
        torch.randint(256, (h * w * 3,)) if i % 3 == 0 else 255 * torch.randint(i % 2, 2, (h * w * 3,))
        for i, (h, w) in enumerate(sizes)
    ]
    lengths = torch.tensor([len(image) for image in images])
    return {
        "pixels": torch.cat(images).to(device, torch.uint8),
        "offsets": (lengths.cumsum(0) - lengths).to(device),
        "sizes": torch.tensor(sizes, device=device),
    }


def crops(device: torch.device, boxes: list[tuple[int, ...]] = BOXES) -> dict[str, Tensor]:
    rows = torch.tensor(boxes, dtype=torch.int64, device=device).view(-1, 5)
    return {"boxes": rows[:, 1:], "image_index": rows[:, 0]}


def arguments(device: torch.device, height: int = 16, width: int = 24) -> dict[str, Any]:
    sizes = {"height": height, "width": width, "mean": MEAN, "std": STD}
    return batch(device) | crops(device) | sizes


def bytes_of(crop: Tensor) -> Tensor:
    """The 8-bit values of crops made with mean 0 and std 1."""
    return (crop * 255).round().to(torch.uint8)


def test_crop_resize_by_hand(device: torch.device):
    # Halving a row: a result takes its four neighbours by 1, 3, 3, 1 eighths, at the ends 3, 3, 1 sevenths.
    row = torch.tensor([0, 0, 80, 80, 160, 160], dtype=torch.uint8, device=device)
    given = {
        "pixels": row.repeat_interleave(3),
        "offsets": torch.tensor([0], device=device),
        "sizes": torch.tensor([[1, 6]], device=device),
        **crops(device, [(0, 0, 0, 6, 1)]),
        "height": 1,
        "width": 3,
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
    }
    expected = torch.tensor([round(80 / 7), 80, round((80 + 6 * 160) / 7)], dtype=torch.uint8)
    for function in (ops.crop_resize, reference.crop_resize):
        assert torch.equal(bytes_of(function(**given))[0, :, 0].cpu(), expected.expand(3, 3))


@pytest.mark.parametrize(("height", "width"), OUTPUTS)
def test_crop_resize_matches_reference(height: int, width: int, device: torch.device):
    given = arguments(device, height, width)
    assert torch.equal(ops.crop_resize(**given), reference.crop_resize(**given))


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 13 changed the order of passes")
@pytest.mark.parametrize(("height", "width"), [*OUTPUTS, (224, 224)])
def test_crop_resize_equals_pillow(height: int, width: int, device: torch.device):
    given = arguments(device, height, width) | {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    ours = bytes_of(ops.crop_resize(**given)).movedim(1, 3).cpu().numpy()
    pixels = given["pixels"].cpu().numpy()
    inside = windows(height, width, device)
    parts = bytes_of(ops.crop_resize(**given, windows=inside)).movedim(1, 3).cpu().numpy()
    for (i, *box), crop, part, window in zip(BOXES, ours, parts, inside.tolist(), strict=True):
        h, w = SIZES[i]
        begin = int(given["offsets"][i])
        image = Image.fromarray(pixels[begin : begin + h * w * 3].reshape(h, w, 3)).crop(tuple(box))
        expected = image.resize((width, height), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(crop, np.asarray(expected), err_msg=f"box {box} of image {i}")
        resized_height, resized_width, top, left = window
        expected = image.resize((resized_width, resized_height), Image.Resampling.BILINEAR)
        expected = expected.crop((left, top, left + width, top + height))
        np.testing.assert_array_equal(part, np.asarray(expected), err_msg=f"{window} of box {box}, image {i}")


def test_crop_resize_long_filters(device: torch.device):
    """More taps than the CUDA kernel keeps weights of, and more lines than one of its chunks."""
    given = arguments(device, 2, 3) | batch(device, [(150, 900)]) | crops(device, [(0, 0, 0, 900, 150)])
    assert torch.equal(ops.crop_resize(**given), reference.crop_resize(**given))
    given["windows"] = torch.tensor([[4, 9, 1, 5]], device=device)
    assert torch.equal(ops.crop_resize(**given), reference.crop_resize(**given))


def test_crop_resize_plain_and_vector_paths_agree(tmp_path: Path):
    """torch's switch turns the vector path off; it is read once, so another process takes the plain path."""
    torch.save([arguments(torch.device("cpu"), *output) for output in OUTPUTS], tmp_path / "given.pt")
    program = (
        "import sys, torch; from placket import ops; folder = sys.argv[1];"
        "given = torch.load(folder + '/given.pt');"
        "torch.save([ops.crop_resize(**g) for g in given], folder + '/plain.pt')"
    )
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    subprocess.run([sys.executable, "-c", program, tmp_path], env=environment, check=True)
    vector = [ops.crop_resize(**given) for given in torch.load(tmp_path / "given.pt")]
    assert all(map(torch.equal, torch.load(tmp_path / "plain.pt"), vector))


def test_crop_resize_low_precision(device: torch.device):
    given = arguments(device)
    low = ops.crop_resize(**given, dtype=torch.bfloat16)
    assert torch.equal(low, ops.crop_resize(**given).bfloat16())


def test_crop_resize_channels_last(device: torch.device):
    given = arguments(device)
    crop = ops.crop_resize(**given, channels_last=True)
    assert crop.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(crop, ops.crop_resize(**given))


def test_crop_resize_flip(device: torch.device):
    given = arguments(device, 70, 12)
    flip = torch.arange(len(BOXES), device=device) % 2 == 0
    plain = ops.crop_resize(**given)
    expected = torch.where(flip[:, None, None, None], plain.flip(3), plain)
    assert torch.equal(ops.crop_resize(**given, flip=flip), expected)
    assert torch.equal(reference.crop_resize(**given, flip=flip), expected)


def windows(height: int, width: int, device: torch.device) -> Tensor:
    """Of every box in turn: as it is, at the corners, inside a far larger and a hardly larger picture."""
    kinds = [
        (height, width, 0, 0),
        (height + 5, width, 5, 0),
        (height, width + 40, 0, 3),
        (3 * height + 1, 2 * width + 7, height, width),
        (height + 1, width + 90, 0, 90),
    ]
    return torch.tensor([kinds[i % len(kinds)] for i in range(len(BOXES))], device=device)


@pytest.mark.parametrize(("height", "width"), [*OUTPUTS, (2, 40)])
def test_crop_resize_windows(height: int, width: int, device: torch.device):
    given = arguments(device, height, width)
    inside = windows(height, width, device)
    flip = torch.arange(len(BOXES), device=device) % 3 == 0
    made = ops.crop_resize(**given, windows=inside, flip=flip)
    assert torch.equal(made, reference.crop_resize(**given, windows=inside, flip=flip))
    for i, (resized_height, resized_width, top, left) in enumerate(inside.tolist()):
        one = {"boxes": given["boxes"][i : i + 1], "image_index": given["image_index"][i : i + 1]}
        whole = ops.crop_resize(**(given | one | {"height": resized_height, "width": resized_width}))
        expected = whole[0, :, top : top + height, left : left + width]
        assert torch.equal(made[i], expected.flip(2) if flip[i] else expected)


@pytest.mark.parametrize("optional", [False, True])
def test_crop_resize_registration(device: torch.device, opcheck, optional: bool):
    given = arguments(device)
    flips = torch.ones(len(BOXES), dtype=torch.bool, device=device) if optional else None
    inside = windows(16, 24, device) if optional else None
    dtype = torch.bfloat16 if optional else torch.float32
    opcheck(torch.ops.placket.crop_resize.default, *given.values(), dtype, optional, flips, inside)


def test_crop_resize_compiles(device: torch.device):
    compiled = torch.compile(ops.crop_resize, fullgraph=True, dynamic=True)
    for boxes in (BOXES[:4], BOXES):
        given = arguments(device) | crops(device, boxes)
        assert torch.equal(compiled(**given), ops.crop_resize(**given))


def test_crop_resize_layouts(device: torch.device):
    given = arguments(device)
    expected = ops.crop_resize(**given)
    strided = {
        "pixels": torch.stack([given["pixels"], given["pixels"]], 1)[:, 0],
        "sizes": given["sizes"].T.contiguous().T,
        "boxes": torch.cat([given["boxes"], given["boxes"]], 1)[:, :4],
    }
    assert torch.equal(ops.crop_resize(**(given | strided)), expected)
    shifted = torch.cat([given["pixels"].new_zeros(1), given["pixels"]])[1:]
    assert torch.equal(ops.crop_resize(**(given | {"pixels": shifted})), expected)


def test_crop_resize_empties(device: torch.device):
    given = arguments(device)
    assert ops.crop_resize(**(given | crops(device, []))).shape == (0, 3, 16, 24)
    assert ops.crop_resize(**(given | {"height": 0})).shape == (len(BOXES), 3, 0, 24)
    none = {"pixels": given["pixels"][:0], "offsets": given["offsets"][:0], "sizes": given["sizes"][:0]}
    assert ops.crop_resize(**(given | none | crops(device, []))).shape == (0, 3, 16, 24)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pixels": torch.zeros(3)}, TypeError, "pixels must be Byte, got Float"),
        (
            {"sizes": torch.zeros(2, 2, dtype=torch.int64)},
            ValueError,
            r"sizes must have shape \[N, 2\] like offsets",
        ),
        (
            {"image_index": torch.zeros(3, dtype=torch.int64)},
            ValueError,
            r"image_index must have shape \[M\] like",
        ),
        ({"boxes": torch.zeros(15, 4)}, TypeError, "boxes must be Long, got Float"),
        ({"flip": torch.zeros(15)}, TypeError, "flip must be Bool, got Float"),
        ({"windows": torch.zeros(15, 4)}, TypeError, "windows must be Long, got Float"),
        (
            {"windows": torch.tensor([[20, 24, 0, 0]] * 14 + [[20, 24, 5, 0]])},
            ValueError,
            r"windows must be .* of 16 x 24 pixels inside .* got \[20, 24, 5, 0\] for box 14",
        ),
        ({"windows": torch.tensor([[16, 24, 0, -1]] * 15)}, ValueError, r"got \[16, 24, 0, -1\] for box 0"),
        (
            {"windows": torch.tensor([[(1 << 34) + 1, 24, 0, 0]] * 15)},
            ValueError,
            r"sides of at most 17179869184, got \[17179869185, 24, 0, 0\] for box 0",
        ),
        ({"dtype": torch.float64}, TypeError, "dtype must be float32 or bfloat16, got Double"),
        ({"height": -1}, ValueError, "height and width must not be negative, got -1 and 24"),
        ({"mean": (0.0, 0.0)}, ValueError, r"mean must be 3 finite numbers, got \[0, 0\]"),
        ({"std": (1.0, 0.0, 1.0)}, ValueError, r"std must be 3 positive numbers, got \[1, 0, 1\]"),
        (
            crops(torch.device("cpu"), [(1, 4, 4, 4, 9)]),
            ValueError,
            r"x0 < x1 .* got \[4, 4, 4, 9\] for box 0",
        ),
        (
            crops(torch.device("cpu"), [(1, 0, 0, 1 << 21, 9)]),
            ValueError,
            r"no further than 1048576 from 0, got",
        ),
        (
            crops(torch.device("cpu"), [(5, 0, 0, 9, 9)]),
            ValueError,
            r"image_index must be in \[0, 5\), got 5 for box",
        ),
        (
            {"offsets": torch.full((5,), 99999)},
            ValueError,
            r"inside the \d+ bytes of pixels, got offset 99999",
        ),
        (
            {"sizes": torch.full((5, 2), 1 << 62)},
            ValueError,
            r"and size \[4611686018427387904, .* for image 0",
        ),
    ],
)
def test_crop_resize_errors(change: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=f"crop_resize: .*{message}"):
        ops.crop_resize(**(arguments(torch.device("cpu")) | change))


@pytest.mark.gpu
def test_crop_resize_cuda_makes_invalid_crops_black():
    device = torch.device("cuda")
    given = arguments(device)
    bad = [(5, 0, 0, 9, 9), (-1, 0, 0, 9, 9), (1, 4, 4, 4, 9), (1, 0, 0, 1 << 40, 9)]
    made = ops.crop_resize(**(given | crops(device, bad)))
    black = -torch.tensor(MEAN, device=device) / torch.tensor(STD, device=device)
    assert torch.equal(made, black[:, None, None].expand_as(made))
    made = ops.crop_resize(**(given | {"offsets": given["offsets"] + (1 << 40)}))
    assert torch.equal(made, black[:, None, None].expand_as(made))
    for window in ([20, 24, 5, 0], [16, 24, 0, -1], [15, 24, 0, 0], [(1 << 34) + 1, 24, 0, 0]):
        outside = torch.tensor([window] * len(BOXES), device=device)
        made = ops.crop_resize(**given, windows=outside)
        assert torch.equal(made, black[:, None, None].expand_as(made))


def test_crop_resize_is_deterministic(device: torch.device):
    given = arguments(device, 70, 80)
    expected = ops.crop_resize(**given)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(ops.crop_resize(**given), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.gpu
def test_crop_resize_on_a_side_stream():
    given = arguments(torch.device("cuda"))
    expected = ops.crop_resize(**given)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        made = ops.crop_resize(**given)
    stream.synchronize()
    assert torch.equal(made, expected)
