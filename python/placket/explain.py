"""Pictures of what a model looks at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from placket import _C, ops
from placket.data import read_image
from placket.nn import Pictures, Rpf

__all__ = ["Look", "attention_overlay", "look"]

# Violet over red to yellow: lightness rises all the way, and no end is lost on a white or a black ground.
_COLOURS = np.array(
    [(70, 0, 110), (190, 10, 90), (235, 60, 20), (255, 140, 0), (255, 215, 0)], dtype=np.float32
)
_BOX, _REGION, _EDGE = (255, 255, 255), (60, 220, 90), (0, 0, 0)


@dataclass(frozen=True)
class Look:
    """What a model sees in an image under one attribute; boxes are x0, y0, x1, y1 in pixels of the image.

    Attributes:
        attribute: its name.
        picture: ``[H, W, 3]`` uint8, the image.
        window: the part of it that the attention map covers; it may leave the image.
        attention: ``[h, w]`` float32, sums to 1.
        box: the crop that the map gives, x1 and y1 exclusive.
        embedding: ``[D]`` float32, L2-normalised.
    """

    attribute: str
    picture: NDArray[np.uint8]
    window: tuple[float, float, float, float]
    attention: NDArray[np.float32]
    box: tuple[int, int, int, int]
    embedding: NDArray[np.float32]

    def overlay(self, regions: Sequence[Sequence[float]] = ()) -> NDArray[np.uint8]:
        """Return the picture with attention as heat, the box in white, true regions, if given, in green."""
        return attention_overlay(self.picture, self.attention, self.box, window=self.window, regions=regions)

    def crop(self) -> NDArray[np.uint8]:
        """Return the part of the picture inside the box; zeros where the box leaves the image."""
        return np.asarray(Image.fromarray(self.picture).crop(self.box))


@torch.inference_mode()
def look(
    model: Rpf,
    image: str | os.PathLike[str],
    attributes: Sequence[str | int],
    box: Sequence[int] | None = None,
) -> list[Look]:
    """Show what a model sees in an image under some attributes.

    Args:
        model: in the mode it is in; ``placket.load`` returns it for evaluation.
        image: path of the file.
        attributes: names or ids.
        box: x0, y0, x1, y1 of the garment in pixels, x1 and y1 exclusive; the whole image without one.

    Raises:
        RuntimeError: the image cannot be read; the text names file and cause.
    """
    preprocess = _C.Preprocess(**model.preprocess)
    picture = read_image(image, upright=preprocess.orientation == "apply")
    batch = _C.prepare_image(picture, box, preprocess)
    height, width = picture.shape[:2]
    (left, top, _, _), (x0, y0, x1, y1) = _C.frame(height, width, box, preprocess)
    device = next(model.parameters()).device
    ids = torch.tensor([model.schema.indices(attributes)], device=device)
    out = model(batch.images.to(device), ids, Pictures.of(batch, device))
    attention = out.attention[0].float().cpu()
    found = ops.region_box(attention, batch.sizes.expand(len(attention), 2), model.config.box_threshold)
    boxes = (found + torch.tensor([left, top, left, top])).tolist()
    return [
        Look(
            model.schema.names[int(ids[0, k])],
            picture,
            (x0, y0, x1, y1),
            attention[k].numpy(),
            (boxes[k][0], boxes[k][1], boxes[k][2], boxes[k][3]),
            out.embedding[0, k].float().cpu().numpy(),
        )
        for k in range(len(boxes))
    ]


def attention_overlay(
    picture: NDArray[np.uint8],
    attention: ArrayLike,
    box: Sequence[float] | None = None,
    *,
    window: Sequence[float] | None = None,
    regions: Sequence[Sequence[float]] = (),
    strength: float = 0.75,
) -> NDArray[np.uint8]:
    """Lay an attention map over a picture as heat, and draw the box found from it.

    The map is scaled to its own range; one that is the same everywhere leaves the picture as it is.

    Args:
        picture: ``[H, W, 3]`` uint8.
        attention: ``[h, w]`` floats.
        box: x0, y0, x1, y1 in pixels of the picture, drawn white.
        window: the part of the picture that the map covers, in pixels (``placket.protocols.input_window``);
            all of it where None. What lies outside is darkened.
        regions: true boxes, drawn green.
        strength: share of the heat where attention is greatest, in [0, 1].

    Returns:
        ``[H, W, 3]`` uint8.
    """
    pixels, heat = np.asarray(picture), _as_array(attention).astype(np.float32)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f"attention_overlay: picture must be uint8 of shape [H, W, 3], got {pixels.dtype} "
            f"{list(pixels.shape)}"
        )
    if heat.ndim != 2 or not heat.size or not np.isfinite(heat).all():
        raise ValueError(
            f"attention_overlay: attention must be finite numbers of shape [h, w], got {list(heat.shape)} "
            f"with {int((~np.isfinite(heat)).sum())} that are not finite"
        )
    if not 0 <= strength <= 1:
        raise ValueError(f"attention_overlay: strength must be in [0, 1], got {strength}")
    height, width = pixels.shape[:2]
    x0, y0, x1, y1 = (0.0, 0.0, float(width), float(height)) if window is None else map(float, window)
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"attention_overlay: window must have x0 < x1 and y0 < y1, got {window}")
    spread = float(heat.max() - heat.min())
    level = (heat - heat.min()) / spread if spread > 0 else np.zeros_like(heat)
    # Output pixel (x, y) reads the map at its place in the window: Pillow's affine transform maps output to
    # input.
    step_x, step_y = heat.shape[1] / (x1 - x0), heat.shape[0] / (y1 - y0)
    # One repeated cell on each side lets the outer half of the border cells be interpolated too.
    padded = Image.fromarray(np.pad(level, 1, mode="edge"))
    matrix = (step_x, 0.0, 1 - x0 * step_x, 0.0, step_y, 1 - y0 * step_y)
    smooth = np.asarray(
        padded.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    )
    share = strength * smooth[..., None]
    mixed = pixels * (1 - share) + _colour(smooth) * share
    column, row = np.arange(width) + 0.5, np.arange(height) + 0.5
    covered = ((column >= x0) & (column < x1))[None, :] & ((row >= y0) & (row < y1))[:, None]
    mixed = np.where(covered[..., None], mixed, pixels * 0.5)
    result = Image.fromarray(np.rint(mixed).astype(np.uint8))
    for region in regions:
        _outline(result, region, _REGION)
    if box is not None:
        _outline(result, box, _BOX)
    return np.asarray(result).copy()


def _colour(level: NDArray[np.float32]) -> NDArray[np.float32]:
    place = level * (len(_COLOURS) - 1)
    low = np.minimum(place.astype(np.int64), len(_COLOURS) - 2)
    share = (place - low)[..., None]
    colours: NDArray[np.float32] = _COLOURS[low] * (1 - share) + _COLOURS[low + 1] * share
    return colours


def _outline(image: Image.Image, box: Sequence[float], colour: tuple[int, int, int]) -> None:
    """Draw a box with a dark edge on both sides, to be seen on any ground."""
    x0, y0, x1, y1 = (round(float(edge)) for edge in box)
    if x1 - x0 < 1 or y1 - y0 < 1:
        raise ValueError(f"attention_overlay: boxes must have x0 < x1 and y0 < y1, got {list(box)}")
    draw = ImageDraw.Draw(image)
    thick = max(1, min(image.size) // 110)
    for inset, line in ((-1, _EDGE), (thick, _EDGE), *((i, colour) for i in range(thick))):
        corners = (x0 + inset, y0 + inset, x1 - 1 - inset, y1 - 1 - inset)
        if corners[0] <= corners[2] and corners[1] <= corners[3]:
            draw.rectangle(corners, outline=line)


def _as_array(values: Any) -> NDArray[Any]:
    """Return a NumPy array of what may be a tensor on any device and of any dtype."""
    return np.asarray(values.detach().cpu().float() if hasattr(values, "detach") else values)
