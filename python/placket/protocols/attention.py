"""The pointing game: whether attention is greatest inside the attribute's true region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from placket import _C

__all__ = ["attention_peaks", "input_window", "pointing"]


def attention_peaks(attention: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    """Return where attention maps are largest, as the centre of that cell.

    Args:
        attention: ``[n, h, w]``.

    Returns:
        ``[n, 2]`` x and y as shares of width and height; NaN for a map whose cells are all equal, which
        points nowhere. Of several equal maxima the first in row order counts.
    """
    maps = torch.as_tensor(attention).detach().cpu()
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(f"attention_peaks: attention must have shape [n, h, w], got {list(maps.shape)}")
    if maps.isnan().any():
        raise ValueError("attention_peaks: attention must be numbers, got NaN")
    _, height, width = maps.shape
    cells = maps.flatten(1)
    place = cells.argmax(1).numpy()
    peaks = np.stack([(place % width + 0.5) / width, (place // width + 0.5) / height], axis=1)
    peaks[(cells == cells[:, :1]).all(1).numpy()] = np.nan
    return peaks


def input_window(
    width: int,
    height: int,
    box: Sequence[int] | None = None,
    *,
    size: int,
    fit: str = "crop",
    box_margin: float = 0.0,
    target_ratio: float = 1.25,
) -> tuple[float, float, float, float]:
    """Return the part of an image that a model's square input shows, as preprocessing cuts it.

    The box (the whole image without one) grows by ``box_margin`` of its sides and is cut to the image; with
    "pad" it becomes a square about its centre, with "target_pad" no longer than ``target_ratio``; the short
    side is resized to ``size`` and the centre kept. With "squash" the input shows all of it.

    Args:
        width, height: of the image, in pixels.
        box: x0, y0, x1, y1 of the garment, x1 and y1 exclusive.
        size, fit, box_margin, target_ratio: as in the model's preprocessing.

    Returns:
        x0, y0, x1, y1 in pixels of the image; with "pad" and "target_pad" it may leave the image.
    """
    preprocess = _C.Preprocess(size=size, fit=fit, box_margin=box_margin, target_ratio=target_ratio)
    x0, y0, x1, y1 = _C.frame(height, width, box, preprocess)[1]
    return x0, y0, x1, y1


def pointing(peaks: ArrayLike, windows: ArrayLike, regions: Sequence[ArrayLike]) -> NDArray[np.bool_]:
    """Tell which attention maxima fall inside the true region of their attribute (the pointing game).

    Args:
        peaks: ``[n, 2]`` of ``attention_peaks``.
        windows: ``[n, 4]`` the part of its image that each map covers, of ``input_window``.
        regions: for each map the boxes ``[r, 4]`` (x0, y0, x1, y1; x1 and y1 exclusive, in pixels of the
            image) that make up the region; inside one of them is inside.

    Returns:
        ``[n]``; its mean is the share that points right.
    """
    at, cut = np.asarray(peaks, dtype=np.float64), np.asarray(windows, dtype=np.float64)
    if at.shape != (len(regions), 2) or cut.shape != (len(regions), 4):
        raise ValueError(
            f"pointing: peaks and windows must have shapes [{len(regions)}, 2] and [{len(regions)}, 4] as "
            f"there are {len(regions)} regions, got {list(at.shape)} and {list(cut.shape)}"
        )
    points = cut[:, :2] + at * (cut[:, 2:] - cut[:, :2])
    inside = np.zeros(len(regions), dtype=np.bool_)
    for i, (x, y) in enumerate(points):
        for x0, y0, x1, y1 in np.asarray(regions[i], dtype=np.float64).reshape(-1, 4):
            inside[i] |= bool(x0 <= x < x1 and y0 <= y < y1)
    return inside
