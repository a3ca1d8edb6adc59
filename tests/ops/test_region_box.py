from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from placket import ops, reference


def random_maps(count: int, h: int, w: int) -> Tensor:
    """Softmax maps from nearly flat to one peak."""
    sharpness = torch.rand(count, 1) * 12
    return torch.softmax(torch.randn(count, h * w) * sharpness, 1).view(count, h, w)


def random_sizes(count: int) -> Tensor:
    return torch.randint(1, 900, (count, 2))


def special_maps(h: int, w: int) -> Tensor:
    """A single bright position, at every place; one dark position; rows and columns along the borders."""
    single = torch.eye(h * w).view(-1, h, w)
    borders = torch.zeros(4, h, w)
    borders[0, 0], borders[1, -1], borders[2, :, 0], borders[3, :, -1] = 1.0, 1.0, 1.0, 1.0
    return torch.cat([single, 1 - single[::37], borders])


def opencv_box(attention: np.ndarray, size: tuple[int, int], threshold: float, view: int) -> list[int]:
    """The published way: OpenCV for the steps up to the bounding box, then the integer steps."""
    up = cv2.resize(attention, (view, view), interpolation=cv2.INTER_LINEAR)
    scaled = ((up - up.min()) / (up.max() - up.min()) * 255).astype(np.uint8)
    _, mask = cv2.threshold(scaled, 255 * threshold, 255, cv2.THRESH_BINARY)
    left, top, w, h = cv2.boundingRect(mask)
    d = max(w, h)
    starts = []
    for begin, extent in ((left, w), (top, h)):
        middle = begin + extent // 2
        starts.append(view - d if middle + d // 2 > view else max(0, middle - d // 2))
    height, width = size
    short = min(height, width)
    x, y = (int(start / view * short) for start in starts)
    side = max(1, int(d / view * short))
    if width < height:
        y += (height - width) // 2
    else:
        x += (width - height) // 2
    return [x, y, x + side, y + side]


def centre_squares(sizes: Tensor) -> Tensor:
    short = sizes.min(1, keepdim=True).values
    start = ((sizes - short) // 2).flip(1)
    return torch.cat([start, start + short], 1)


def test_region_box_by_hand(device: torch.device):
    # Along the peak's row the pixel j steps off the best has 31/32 (31 - 2j)/32, the best itself (31/32)^2.
    # At least 26/255 of that is kept: j <= 13 on either side of the middle, 168 for column 10 and 56 for
    # row 3. So columns 154 to 181 and rows 42 to 69.
    attention = torch.zeros(1, 14, 14, device=device)
    attention[0, 3, 10] = 1
    sizes = torch.tensor([[448, 224 * 3]], device=device)
    expected = torch.tensor([[154 * 2 + 112, 42 * 2, 182 * 2 + 112, 70 * 2]], device=device)
    assert torch.equal(reference.region_box(attention, sizes), expected)
    assert torch.equal(ops.region_box(attention, sizes), expected)
    # Of the whole image, whose columns are three times as far apart as the view's.
    expected = torch.tensor([[154 * 3, 42 * 2, 182 * 3, 70 * 2]], device=device)
    assert torch.equal(reference.region_box(attention, sizes, squashed=True), expected)
    assert torch.equal(ops.region_box(attention, sizes, squashed=True), expected)


@pytest.mark.parametrize(
    ("h", "w", "view", "threshold"),
    [
        (14, 14, 224, 0.1),
        (7, 7, 112, 0.4),
        (5, 9, 100, 0.0),
        (1, 1, 8, 0.1),
        (1, 30, 31, 0.999),
        (24, 24, 384, 0.2),
    ],
)
def test_region_box_matches_reference(h: int, w: int, view: int, threshold: float, device: torch.device):
    attention, sizes = random_maps(40, h, w).to(device), random_sizes(40).to(device)
    for squashed in (False, True):
        expected = reference.region_box(attention, sizes, threshold, view, squashed)
        assert torch.equal(ops.region_box(attention, sizes, threshold, view, squashed), expected)


@pytest.mark.parametrize("threshold", [0.1, 0.4])
def test_region_box_equals_opencv(threshold: float, device: torch.device):
    attention = torch.cat([random_maps(2000, 14, 14), special_maps(14, 14)])
    sizes = random_sizes(len(attention))
    expected = [
        opencv_box(m.numpy(), s, threshold, 224) for m, s in zip(attention, sizes.tolist(), strict=True)
    ]
    made = ops.region_box(attention.to(device), sizes.to(device), threshold)
    assert made.tolist() == expected


def test_region_box_reference_on_special_maps():
    attention = special_maps(4, 5)
    sizes = random_sizes(len(attention))
    assert torch.equal(reference.region_box(attention, sizes), ops.region_box(attention, sizes))


@pytest.mark.parametrize("value", [0.0, 1 / 196, -3.0, math.nan, math.inf, -math.inf])
def test_region_box_flat_or_not_finite_is_centre_square(value: float, device: torch.device):
    sizes = random_sizes(8)
    flat = torch.full((8, 14, 14), value)
    assert torch.equal(ops.region_box(flat.to(device), sizes.to(device)).cpu(), centre_squares(sizes))
    if not math.isfinite(value):
        one = random_maps(8, 14, 14)
        one[:, 5, 5] = value
        assert torch.equal(ops.region_box(one.to(device), sizes.to(device)).cpu(), centre_squares(sizes))
        assert torch.equal(reference.region_box(one, sizes), centre_squares(sizes))


def test_region_box_range_beyond_float32_is_centre_square(device: torch.device):
    sizes = random_sizes(1)
    attention = torch.tensor([[[3e38, -3e38]]], device=device)
    assert torch.equal(ops.region_box(attention, sizes.to(device)).cpu(), centre_squares(sizes))


def test_region_box_has_an_area_in_tiny_images(device: torch.device):
    attention = special_maps(2, 3).to(device)
    for h, w in ((1, 1), (1, 900), (3, 2)):
        sizes = torch.tensor([[h, w]], device=device).expand(len(attention), 2)
        for squashed in (False, True):
            box = ops.region_box(attention, sizes, squashed=squashed)
            assert ((box[:, 2:] - box[:, :2]) >= 1).all()
            assert torch.equal(box, reference.region_box(attention, sizes, squashed=squashed))


def test_region_box_carries_no_gradient(device: torch.device):
    attention = random_maps(2, 14, 14).to(device).requires_grad_()
    assert not ops.region_box(attention, random_sizes(2).to(device)).requires_grad


def test_region_box_registration(device: torch.device, opcheck):
    sizes = random_sizes(3).to(device)
    opcheck(torch.ops.placket.region_box.default, random_maps(3, 14, 14).to(device), sizes)
    opcheck(
        torch.ops.placket.region_box.default,
        random_maps(3, 14, 14).to(device).requires_grad_(),
        sizes,
        0.4,
        112,
        True,
    )


def test_region_box_compiles(device: torch.device):
    compiled = torch.compile(ops.region_box, fullgraph=True, dynamic=True)
    for n in (4, 9):
        given = random_maps(n, 14, 14).to(device), random_sizes(n).to(device)
        assert torch.equal(compiled(*given), ops.region_box(*given))


def test_region_box_layouts(device: torch.device):
    attention, sizes = random_maps(6, 14, 14).to(device), random_sizes(6).to(device)
    expected = ops.region_box(attention, sizes)
    assert torch.equal(ops.region_box(attention.mT.contiguous().mT, sizes.T.contiguous().T), expected)
    shifted = torch.cat([attention.new_zeros(1), attention.flatten()])[1:].view(6, 14, 14)
    assert torch.equal(ops.region_box(shifted, sizes), expected)
    one = attention[:1].expand(6, 14, 14)
    assert torch.equal(ops.region_box(one, sizes), ops.region_box(one.clone(), sizes))


def test_region_box_empty(device: torch.device):
    attention = torch.zeros(0, 14, 14, device=device)
    sizes = torch.zeros(0, 2, dtype=torch.int64, device=device)
    assert ops.region_box(attention, sizes).shape == (0, 4)
    assert reference.region_box(attention, sizes).shape == (0, 4)


def test_region_box_errors():
    attention, sizes = random_maps(2, 14, 14), random_sizes(2)
    with pytest.raises(
        ValueError, match=r"region_box: attention must have shape \[N, h, w\], got \[2, 196\]"
    ):
        ops.region_box(attention.flatten(1), sizes)
    with pytest.raises(
        ValueError, match=r"region_box: sizes must have shape \[N, 2\] like attention, got \[1, 2\]"
    ):
        ops.region_box(attention, sizes[:1])
    with pytest.raises(TypeError, match="region_box: attention must be Float, got Double"):
        ops.region_box(attention.double(), sizes)
    with pytest.raises(TypeError, match="region_box: sizes must be Long, got Int"):
        ops.region_box(attention, sizes.int())
    with pytest.raises(
        ValueError, match=r"region_box: attention must have at least one position, got \[2, 0, 14\]"
    ):
        ops.region_box(attention[:, :0], sizes)
    with pytest.raises(
        ValueError, match="region_box: view must be from the map's size to 1048576, got 13 for a map"
    ):
        ops.region_box(attention, sizes, view=13)
    with pytest.raises(ValueError, match=r"region_box: threshold must be in \[0, 1\), got 1"):
        ops.region_box(attention, sizes, threshold=1.0)
    with pytest.raises(ValueError, match=r"region_box: sizes must be at least 1, got \[0, 5\] for map 1"):
        ops.region_box(attention, torch.tensor([[4, 5], [0, 5]]))


def test_region_box_is_deterministic(device: torch.device):
    attention, sizes = random_maps(64, 14, 14).to(device), random_sizes(64).to(device)
    expected = ops.region_box(attention, sizes)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(ops.region_box(attention, sizes), expected)
    finally:
        torch.set_num_threads(threads)


def test_region_box_autocast_runs_in_float32(device: torch.device):
    attention, sizes = random_maps(8, 14, 14).to(device).bfloat16(), random_sizes(8).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        boxes = ops.region_box(attention, sizes)
    assert torch.equal(boxes, ops.region_box(attention.float(), sizes))


@pytest.mark.gpu
def test_region_box_on_a_side_stream():
    attention, sizes = random_maps(64, 14, 14).cuda(), random_sizes(64).cuda()
    expected = ops.region_box(attention, sizes)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        boxes = ops.region_box(attention, sizes)
    stream.synchronize()
    assert torch.equal(boxes, expected)
