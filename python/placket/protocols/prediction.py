"""Recognition of attributes: which values an image, or a region of one, has.

``recognition/v1`` asks for images by value, and for values by image. What the attribute literature calls
"mean precision" is seldom defined; here it is the precision of each value at a threshold chosen on the
validation split, averaged over the values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from placket.data.columns import Labels
from placket.protocols._ranking import Reals, hash_of
from placket.protocols.asfr import expected_average_precision
from placket.protocols.result import Result
from placket.schema import AttributeSchema

__all__ = ["best_thresholds", "recognition", "recognition_targets"]

CUTOFFS = (1, 3, 5)


def recognition(
    scores: Tensor | NDArray[Any],
    targets: NDArray[np.integer[Any]],
    valid_scores: Tensor | NDArray[Any],
    valid_targets: NDArray[np.integer[Any]],
    schema: AttributeSchema,
    *,
    missing: int = 0,
) -> Result:
    """Evaluate scores of attribute values by ``recognition/v1``.

    V is the number of values of all attributes, one after another in the order of the schema. Values without
    an image that has them, in the split or on valid, are left out. Of a split of regions
    (``Dataset.region_split``) each row is an image.

    Args:
        scores: ``[N, V]`` any finite numbers, higher where the image has the value.
        targets: ``[N, V]`` 1 where the image has the value, 0 where it has not, -1 where that is not known;
            see ``recognition_targets``.
        valid_scores, valid_targets: the same of the validation split, on which thresholds are chosen.
        schema: the attributes.
        missing: images of the split that were left out because they are not there.

    Returns:
        "mP", the precision of each value among the images that score at least its threshold (0 where none
        does); "mAP", the average precision of each value over the images whose target is known, equal scores
        in image order; and "top-1 recall", "top-3 recall", "top-5 recall", the share of an image's values of
        an attribute that are among the k values of that attribute with the highest scores, equal ones in the
        order of the schema. Of an attribute with one value an image, the last is top-k accuracy. Queries are
        the values; intervals of "mP" and "mAP" are over values, those of the recalls over images. The chance
        beside each is its expectation where scores know nothing: for "mP" the share of images that have the
        value, as among any that are chosen blindly.

    Raises:
        ValueError: shapes do not fit, a score is not finite, a target is none, or no value can be evaluated.
    """
    width = sum(schema.value_counts)
    given = _checked("", scores, targets, width)
    valid = _checked("valid_", valid_scores, valid_targets, width)
    thresholds = best_thresholds(*valid)
    owner = np.repeat(np.arange(len(schema)), schema.value_counts)
    values: dict[str, dict[str, Reals]] = {}
    floors: dict[str, dict[str, Reals]] = {}
    queries: dict[str, int] = {}
    candidates: dict[str, int] = {}
    left_out = 0
    for a, name in enumerate(schema.names):
        s, t = (array[:, owner == a] for array in given)
        having = ((t == 1).any(axis=0)) & np.isfinite(thresholds[owner == a])
        left_out += int((~having).sum())
        if not having.any():
            continue
        pairs = [
            (s[known, v], t[known, v] == 1)
            for v in np.flatnonzero(having)
            for known in [np.flatnonzero(t[:, v] >= 0)]
        ]
        found = {
            "mP": [
                _precision(*pair, bound)
                for pair, bound in zip(pairs, thresholds[owner == a][having], strict=True)
            ],
            "mAP": [_average_precision(*pair) for pair in pairs],
        }
        blind: dict[str, Any] = {
            "mP": [has.mean() for _, has in pairs],
            "mAP": [expected_average_precision([has.sum()], len(has))[0] for _, has in pairs],
        }
        images = (t == 1).any(axis=1)
        order = np.argsort(-s[images], axis=1, kind="stable")
        has = np.take_along_axis(t[images] == 1, order, axis=1)
        for k in CUTOFFS:
            found[f"top-{k} recall"] = has[:, :k].sum(axis=1) / has.sum(axis=1)
            blind[f"top-{k} recall"] = np.full(len(has), min(k / has.shape[1], 1.0))
        for metric in found:
            values.setdefault(metric, {})[name] = np.asarray(found[metric], dtype=np.float64)
            floors.setdefault(metric, {})[name] = np.asarray(blind[metric], dtype=np.float64)
        queries[name], candidates[name] = int(having.sum()), int((t >= 0).any(axis=1).sum())
    if not values:
        raise ValueError("recognition: a value must have images on valid and in the split, got none such")
    return Result.of(
        "recognition/v1",
        values,
        floors=floors,
        missing=missing,
        queries=queries,
        candidates=candidates,
        without_relevant=left_out,
        similarity="scores of values",
        lists=hash_of(given[1].astype(np.int64), valid[1].astype(np.int64)),
    )


def recognition_targets(labels: Labels) -> NDArray[np.int8]:
    """Return targets ``[N, V]`` of a split's labels.

    An image that has labels of an attribute has its other values not; of one that has none nothing is known.
    """
    begin = np.cumsum([0, *labels.values])
    targets = np.full((len(labels), begin[-1]), -1, dtype=np.int8)
    images = labels.images()
    for a in range(len(labels.values)):
        targets[np.unique(images[labels.attribute == a]), begin[a] : begin[a + 1]] = 0
    targets[images, begin[labels.attribute] + labels.value] = 1
    return targets


def best_thresholds(scores: Reals, targets: NDArray[np.integer[Any]]) -> Reals:
    """Return for each value the score from which on F1 is highest; of equal ones the highest score.

    Args:
        scores: ``[N, V]``.
        targets: ``[N, V]`` 1, 0 or -1.

    Returns:
        ``[V]``; infinite for a value that no image has.
    """
    best = np.full(scores.shape[1], np.inf)
    for v in range(scores.shape[1]):
        known = targets[:, v] >= 0
        s, t = scores[known, v], targets[known, v] == 1
        if t.any():
            order = np.argsort(-s, kind="stable")
            s, right = s[order], np.cumsum(t[order])
            last = np.append(s[1:] != s[:-1], True)  # a threshold takes all images of its score
            f1 = 2 * right / (np.arange(1, len(s) + 1) + right[-1])
            best[v] = s[last][f1[last].argmax()]
    return best


def _checked(
    which: str, scores: Tensor | NDArray[Any], targets: NDArray[np.integer[Any]], width: int
) -> tuple[Reals, NDArray[np.integer[Any]]]:
    s = torch.as_tensor(scores).detach().cpu().numpy().astype(np.float64)
    t = np.asarray(targets)
    if s.ndim != 2 or s.shape[1] != width or t.shape != s.shape:
        raise ValueError(
            f"recognition: {which}scores and {which}targets must have shape [N, {width}], "
            f"got {list(s.shape)} and {list(t.shape)}"
        )
    if not np.isfinite(s).all():
        raise ValueError(f"recognition: {which}scores must be finite, got {s[~np.isfinite(s)][0]}")
    if not np.isin(t, (-1, 0, 1)).all():
        raise ValueError(
            f"recognition: {which}targets must be 1, 0 or -1, got {t[~np.isin(t, (-1, 0, 1))][0]}"
        )
    return s, t


def _precision(scores: Reals, has: NDArray[np.bool_], threshold: float) -> float:
    found = scores >= threshold
    return float(has[found].mean()) if found.any() else 0.0


def _average_precision(scores: Reals, has: NDArray[np.bool_]) -> float:
    ranked = has[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked].mean())
