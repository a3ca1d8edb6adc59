"""The operators as typed functions: each has a CPU and a CUDA kernel and, where there is a gradient, C++ autograd.

Dimensions: B images, C channels of a map of h x w positions, N rows, D channels of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["batch_norm_act", "cosine_triplet", "crop_resize", "region_box"]


def batch_norm_act(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int = 1,
    eps: float = 1e-5,
    relu: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise a map by statistics of the batch, add a residual and apply ReLU, in one pass.

    Args:
        input: ``[B, C, h, w]``; taken and returned in channels_last memory.
        residual: None, or a map like ``input`` that is added before the ReLU.
        weight, bias: ``[C]``, float32 (float64 for a float64 map).
        groups: statistics of this many equal parts of the batch are kept apart; divides B. With the three roles of a
            triplet batch one after another, 3 gives what three forwards would.
        eps: added to the variance.
        relu: whether negative values are cut off.

    Returns:
        The map, and mean and biased variance ``[groups, C]`` for the running statistics (they carry no gradient).
    """
    return torch.ops.placket.batch_norm_act(input, residual, weight, bias, groups, eps, relu)


@torch.library.register_fake("placket::batch_norm_act")
def _(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int = 1,
    eps: float = 1e-5,
    relu: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = weight.new_empty(groups, input.shape[1])
    output = torch.empty_like(input, memory_format=torch.channels_last)
    return output, statistics, torch.empty_like(statistics)


@torch.library.register_fake("placket::_batch_norm_act_backward")
def _(
    grad: Tensor,
    input: Tensor,
    output: Tensor,
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    map_like = torch.empty_like(input, memory_format=torch.channels_last)
    grad_residual = torch.empty_like(map_like) if residual else input.new_empty(0)
    return map_like, grad_residual, torch.empty_like(weight), torch.empty_like(weight)


def cosine_triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.2) -> Tensor:
    """Return the triplet hinge ``max(0, margin - cos(a, p) + cos(a, n))`` of each row.

    Args:
        anchor, positive, negative: ``[N, D]``, one floating dtype; rows need not be normalised (a zero row has
            cosine 0).
        margin: by how much the positive must be nearer, in cosine; 0.2 in ASEN, ASEN++ and RPF.

    Returns:
        ``[N]``; the loss of the papers is its mean, and ``(hinge > 0).mean()`` is the share of active triplets.
    """
    return torch.ops.placket.cosine_triplet(anchor, positive, negative, margin)


@torch.library.register_fake("placket::cosine_triplet")
def _(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.2) -> Tensor:
    return anchor.new_empty(anchor.shape[0])


@torch.library.register_fake("placket::_cosine_triplet_backward")
def _(
    grad: Tensor, anchor: Tensor, positive: Tensor, negative: Tensor, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(anchor, memory_format=torch.contiguous_format),
        torch.empty_like(positive, memory_format=torch.contiguous_format),
        torch.empty_like(negative, memory_format=torch.contiguous_format),
    )


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
    """Cut boxes out of 8-bit RGB images of any sizes, resize them as Pillow does in every bit, and normalise.

    The 8-bit values are those of Pillow 13's ``Image.crop(box).resize((width, height), BILINEAR)``; parts of
    a box outside its image are black.

    Args:
        pixels: ``[L]`` uint8, the images' ``[h, w, 3]`` one after another.
        offsets: ``[N]`` int64, first byte of each image.
        sizes: ``[N, 2]`` int64, height and width of each image.
        boxes: ``[M, 4]`` int64, x0 y0 x1 y1 with x1 and y1 exclusive, no further than 2**20 from 0.
        image_index: ``[M]`` int64, which image a box is cut from.
        height, width: size of the crops.
        mean, std: of the three channels, for values in [0, 1].
        dtype: float32 or bfloat16.
        channels_last: whether the crops lie in channels_last memory.
        flip: None, or ``[M]`` bool: crops to mirror.

    Returns:
        ``[M, 3, height, width]``, ``(value / 255 - mean) / std``.

    Raises:
        ValueError: on the CPU, when a box, index, offset or size is not valid. On CUDA such a crop is black,
            since a check would wait for the device.
    """
    return torch.ops.placket.crop_resize(
        pixels, offsets, sizes, boxes, image_index, height, width, mean, std, dtype, channels_last, flip
    )


@torch.library.register_fake("placket::crop_resize")
def _(
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
    shape = (boxes.shape[0], 3, height, width)
    return torch.empty(shape, dtype=dtype, device=pixels.device, memory_format=layout)


def region_box(attention: Tensor, sizes: Tensor, threshold: float = 0.1, view: int = 224) -> Tensor:
    """Return the square box of the original image that an attention map points at.

    The map belongs to the centre square of the image, its short side resized to ``view``. Where the upsampled
    map, scaled to 8 bits from its least to its greatest value, exceeds ``floor(255 * threshold)`` is bounded
    by a square (ASEN++, IEEE TIP 2021; RPF, SIGIR 2023). A flat map, and one with a value that is not finite,
    gives the whole centre square. No gradient flows through a box.

    Args:
        attention: ``[N, h, w]`` float32, ``h`` and ``w`` at most ``view``.
        sizes: ``[N, 2]`` int64, height and width of the original images, at least 1.
        threshold: in [0, 1).
        view: side of the model's input.

    Returns:
        ``[N, 4]`` int64, x0 y0 x1 y1 in pixels of the original, x1 and y1 exclusive. As published, a square
        of odd side may end one pixel of the view behind its border; ``crop_resize`` reads black there.
    """
    return torch.ops.placket.region_box(attention, sizes, threshold, view)


@torch.library.register_fake("placket::region_box")
def _(attention: Tensor, sizes: Tensor, threshold: float = 0.1, view: int = 224) -> Tensor:
    return sizes.new_empty(attention.shape[0], 4)
