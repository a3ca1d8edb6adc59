"""Pictures of what a model looks at."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from placket import _C, report
from placket.data import read_image
from placket.nn import Model, Pictures
from placket.schema import Attribute

__all__ = ["Explanation", "Look", "attention_overlay", "explain", "look", "table", "write_explanation"]

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
        attention: ``[h, w]`` float32, sums to 1; of a model of words, what speaks for the value it takes for
            likeliest (``placket.nn.RafClip.value_maps``).
        box: the crop that the map gives, x1 and y1 exclusive.
        embedding: ``[D]`` float32, L2-normalised.
        value, probability: the value it takes for likeliest; None where it does not predict.
    """

    attribute: str
    picture: NDArray[np.uint8]
    window: tuple[float, float, float, float]
    attention: NDArray[np.float32]
    box: tuple[int, int, int, int]
    embedding: NDArray[np.float32]
    value: str | None = None
    probability: float | None = None

    def overlay(self, regions: Sequence[Sequence[float]] = ()) -> NDArray[np.uint8]:
        """Return the picture with attention as heat, the box in white, true regions, if given, in green."""
        return attention_overlay(self.picture, self.attention, self.box, window=self.window, regions=regions)

    def crop(self) -> NDArray[np.uint8]:
        """Return the part of the picture inside the box; zeros where the box leaves the image."""
        return np.asarray(Image.fromarray(self.picture).crop(self.box))


@torch.inference_mode()
def look(
    model: Model,
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
        ValueError: the model has no attention.
        RuntimeError: the image cannot be read; the text names file and cause.
    """
    if not model.attends:
        raise ValueError(f"look: model must attend to positions to be looked at, got {model.name}")
    asked = model.schema.indices(attributes)
    preprocess = _C.Preprocess(**model.preprocess)
    picture = read_image(image, upright=preprocess.orientation == "apply")
    batch = _C.prepare_image(picture, box, preprocess)
    height, width = picture.shape[:2]
    (left, top, _, _), (x0, y0, x1, y1) = _C.frame(height, width, box, preprocess)
    device = next(model.parameters()).device
    given = batch.images.to(device), asked, Pictures.of(batch, device)
    out = model.attend(*given)
    attention = out.attention[0].float().cpu()  # [K, h, w]
    found = model.region_boxes(attention, batch.sizes.expand(len(attention), 2))
    boxes = (found + torch.tensor([left, top, left, top])).tolist()
    estimates: Sequence[torch.Tensor | None] = [None] * len(asked)
    if model.predicts_by_embedding:
        estimates = [model.probabilities_of(out.embedding[:, k], a) for k, a in enumerate(asked)]
    elif model.predicts:
        estimates = model.class_probabilities(*given)
    return [
        Look(
            model.schema.names[attribute],
            picture,
            (x0, y0, x1, y1),
            attention[k].numpy(),
            (boxes[k][0], boxes[k][1], boxes[k][2], boxes[k][3]),
            out.embedding[0, k].float().cpu().numpy(),
            *_likeliest(model.schema[attribute], estimates[k]),
        )
        for k, attribute in enumerate(asked)
    ]


def _likeliest(attribute: Attribute, estimate: torch.Tensor | None) -> tuple[str | None, float | None]:
    """Return the likeliest value and its probability, of probabilities ``[1, values]``."""
    if estimate is None or not estimate.any():
        return None, None
    value = int(estimate[0].argmax())
    return attribute.values[value], float(estimate[0, value])


@dataclass(frozen=True)
class Explanation:
    """What a model sees in one image or in two, and what each attribute adds to their similarity.

    Attributes:
        images: one path or two.
        weights: of the attributes, by name.
        looks: for each image, what the model sees under each attribute.
    """

    images: tuple[str, ...]
    weights: dict[str, float]
    looks: tuple[list[Look], ...]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each attribute, in JSON's types.

        With one image: attribute, box and, where the model predicts, the likeliest value and its probability.
        With two: these of both (``box2`` and so on), cosine, its weighted part of the score, and ``share`` of
        the score in per cent; shares sum to 100, and are None where the score is not positive.
        """
        rows: list[dict[str, Any]] = []
        for views in zip(*self.looks, strict=True):
            row: dict[str, Any] = {"attribute": views[0].attribute}
            for ending, view in zip(("", "2"), views, strict=False):
                row["box" + ending] = list(view.box)
                if view.value is not None:
                    row |= {"value" + ending: view.value, "probability" + ending: view.probability}
            if len(views) == 2:
                row["cosine"] = float(views[0].embedding @ views[1].embedding)
                row["part"] = self.weights[row["attribute"]] * row["cosine"]
            rows.append(row)
        if len(self.looks) == 2:
            score = sum(row["part"] for row in rows)
            for row in rows:
                row["share"] = 100 * row["part"] / score if score > 0 else None
        return rows


def explain(
    model: Model,
    image: str | os.PathLike[str],
    other: str | os.PathLike[str] | None = None,
    weights: Mapping[str, float] | Sequence[str] | None = None,
    *,
    box: Sequence[int] | None = None,
    other_box: Sequence[int] | None = None,
) -> Explanation:
    """Show where a model looks in a photograph, and why it finds another one alike.

    Args:
        model: see ``look``.
        image: path of the file.
        other: of the one to compare with.
        weights: attributes, with or without weights; all by default.
        box, other_box: of the garment in each, see ``look``.

    Raises:
        RuntimeError: an image cannot be read; the text names file and cause.
        ValueError: an attribute is not of the model.
    """
    weighted = model.schema.weights(weights)
    images = [(image, box)] if other is None else [(image, box), (other, other_box)]
    return Explanation(
        tuple(os.fspath(each) for each, _ in images),
        weighted,
        tuple(look(model, each, list(weighted), where) for each, where in images),
    )


def table(found: Explanation) -> str:
    """Return the rows of an explanation as aligned text."""
    return report.table_text(*_table(found), digits=3)


def _table(found: Explanation) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return rows for people, and the headings of the columns they have."""
    rows = [
        {key: " ".join(map(str, value)) if key.startswith("box") else value for key, value in row.items()}
        for row in found.rows()
    ]
    headings = {"attribute": "attribute", "box": "box", "box2": "box of the second"}
    headings |= {"value": "value", "probability": "probability"}
    headings |= {"value2": "value of the second", "probability2": "probability of the second"}
    headings |= {"cosine": "cosine", "part": "weighted", "share": "share, %"}
    used = set().union(*rows)
    return rows, {key: heading for key, heading in headings.items() if key in used}


def write_explanation(path: str | os.PathLike[str], found: Explanation) -> None:
    """Write attention, box and crop under each attribute, and what it adds to the score, to one HTML file."""
    rows, headings = _table(found)
    sections = []
    if len(found.images) == 2:
        score = sum(row["part"] for row in rows)
        text = f"The score is {score:.3f}, the weighted sum of the cosines."
        sections.append(report.Section("Similarity", text, report.table_html(rows, headings, digits=3)))
    for views, row in zip(zip(*found.looks, strict=True), rows, strict=True):
        said = [f"{view.value} ({view.probability:.2f})" for view in views if view.value is not None]
        text = " and ".join(said) + "." * bool(said)
        if len(views) == 2:
            text = f"{text} Cosine {row['cosine']:.3f}.".strip()
        pictures = [
            report.gallery_html(view.picture, view.overlay(), view.crop(), [], os.path.basename(image))
            for image, view in zip(found.images, views, strict=True)
        ]
        sections.append(report.Section(views[0].attribute, text, "".join(pictures)))
    report.write_report(
        path,
        "What the model sees",
        sections,
        "Attention as heat, the box found from it in white, and the crop inside the box.",
    )


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
