"""The operators and models in plain PyTorch: slow, obvious, and the definition that tests compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_norm_act(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int = 1,
    eps: float = 1e-5,
    relu: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs, means, variances = [], [], []
    for part in input.chunk(groups):
        mean = part.mean((0, 2, 3))
        variance = part.var((0, 2, 3), correction=0)
        normalized = (part - mean[:, None, None]) / (variance[:, None, None] + eps).sqrt()
        outputs.append(normalized * weight[:, None, None] + bias[:, None, None])
        means.append(mean)
        variances.append(variance)
    output = torch.cat(outputs)
    if residual is not None:
        output = output + residual
    return F.relu(output) if relu else output, torch.stack(means).detach(), torch.stack(variances).detach()


def cosine_triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.2) -> Tensor:
    a, p, n = (F.normalize(x, dim=1) for x in (anchor, positive, negative))
    return F.relu(margin - (a * p).sum(1) + (a * n).sum(1))


def pillow_weights(source: int, target: int) -> Tensor:
    """``[target, source]``: Pillow's antialiased triangle filter, in units of 2**-22."""
    scale = source / target
    radius = max(scale, 1.0)
    center = (torch.arange(target, dtype=torch.float64)[:, None] + 0.5) * scale
    first = (center - radius + 0.5).long().clamp(min=0)
    end = (center + radius + 0.5).long()
    position = torch.arange(source)
    weight = (1 - ((position - center + 0.5) * (1 / radius)).abs()).clamp(min=0)
    weight = torch.where((first <= position) & (position < end), weight, 0.0)
    total = weight.cumsum(1)[:, -1:]  # adds one by one from the left, as Pillow does
    return (0.5 + weight / total * 2**22).long()


def pillow_resize(image: Tensor, height: int, width: int) -> Tensor:
    """``[h, w, 3]`` integers in [0, 255] to ``[height, width, 3]``: two passes, each rounded to 8 bits."""

    def resize(axis: int, target: int) -> None:
        nonlocal image
        weights = pillow_weights(image.shape[axis], target)
        image = torch.tensordot(weights, image, ([1], [axis])).movedim(0, axis)
        image = (image + 2**21 >> 22).clamp(max=255)

    rows, columns = image.shape[0] - height, image.shape[1] - width
    passes = [(1, width), (0, height)]
    # Pillow 13 takes the vertical pass first where that saves work (python-pillow/Pillow#9549).
    for axis, target in reversed(passes) if rows > max(0, 2 * columns) else passes:
        resize(axis, target)
    return image


def crop_resize(
    pixels: Tensor,
    offsets: Tensor,
    sizes: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    flip: Tensor | None = None,
) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    crops = torch.empty((len(boxes), 3, height, width), dtype=dtype, memory_format=layout)
    for i, (box, index) in enumerate(zip(boxes.tolist(), image_index.tolist(), strict=True)):
        x0, y0, x1, y1 = box
        h, w = sizes[index].tolist()
        image = pixels[offsets[index] :][: h * w * 3].view(h, w, 3).long().cpu()
        cut = torch.zeros(y1 - y0, x1 - x0, 3, dtype=torch.int64)
        top, left, bottom, right = max(y0, 0), max(x0, 0), max(min(y1, h), 0), max(min(x1, w), 0)
        if top < bottom and left < right:
            cut[top - y0 : bottom - y0, left - x0 : right - x0] = image[top:bottom, left:right]
        crop = pillow_resize(cut, height, width)
        if flip is not None and flip[i]:
            crop = crop.flip(1)
        crops[i] = ((crop / 255 - torch.tensor(mean)) / torch.tensor(std)).movedim(2, 0)
    return crops.to(pixels.device)


def upsample_maps(maps: Tensor, view: int) -> Tensor:
    """``[N, h, w]`` float32 to ``[N, view, view]`` as OpenCV's INTER_LINEAR, no operations joined."""

    def taps(source: int) -> tuple[Tensor, Tensor, Tensor]:
        scale = 1 / (view / source)
        position = ((torch.arange(view, dtype=torch.float64) + 0.5) * scale - 0.5).float()
        low = position.floor().clamp(0, source - 1)
        weight = torch.where((position < 0) | (low == source - 1), 0.0, position - low)
        return low.long(), (low.long() + 1).clamp(max=source - 1), weight

    low, high, weight = taps(maps.shape[2])
    maps = maps[:, :, low] * (1 - weight) + maps[:, :, high] * weight
    low, high, weight = taps(maps.shape[1])
    return maps[:, low] * (1 - weight[:, None]) + maps[:, high] * weight[:, None]


def region_box(attention: Tensor, sizes: Tensor, threshold: float = 0.1, view: int = 224) -> Tensor:
    maps = upsample_maps(attention.cpu(), view)
    least, greatest = maps.amin((1, 2), True), maps.amax((1, 2), True)
    extent = greatest - least
    usable = extent.isfinite() & (extent > 0)  # false where a value is not finite
    kept = ((maps - least) / extent * 255).nan_to_num().byte() > math.floor(255 * threshold)
    kept |= ~usable
    boxes = []
    for columns, rows, (height, width) in zip(kept.any(1), kept.any(2), sizes.tolist(), strict=True):
        left, top = int(columns.nonzero()[0]), int(rows.nonzero()[0])
        w, h = int(columns.nonzero()[-1]) + 1 - left, int(rows.nonzero()[-1]) + 1 - top
        d = max(w, h)
        x, y = left + w // 2, top + h // 2
        x = view - d if x + d // 2 > view else max(0, x - d // 2)
        y = view - d if y + d // 2 > view else max(0, y - d // 2)
        short = min(height, width)
        x, y, d = int(x / view * short), int(y / view * short), max(1, int(d / view * short))
        x += (width - short) // 2
        y += (height - short) // 2
        boxes.append([x, y, x + d, y + d])
    return torch.tensor(boxes, dtype=torch.int64, device=sizes.device).view(-1, 4)
