"""Joint embeddings of two branches, ``S = beta S_region + (1 - beta) S_patch`` (RPF, SIGIR 2023; ASEN++).

The weight is chosen on the validation split from embeddings that exist: no model runs again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from placket.nn import joint_embedding
from placket.protocols._ranking import rank
from placket.protocols.asfr import Embed, asfr_map_all, single_label_lists, triples
from placket.protocols.result import Result
from placket.schema import AttributeSchema

__all__ = ["Blocks", "RegionWeight", "asfr_joint", "joint_embed", "split_joint", "tune_region_weight"]

_WEIGHTS = tuple(i / 20 for i in range(21))


class Blocks(NamedTuple):
    """The lists of a split, and the two blocks of its embeddings."""

    queries: ArrayLike
    """[Q, 3] rows (image, attribute, value)."""
    candidates: ArrayLike
    """[C, 3] the same."""
    region: Embed
    """L2-normalised or zero rows; see ``embed_from``."""
    patch: Embed


@dataclass(frozen=True)
class RegionWeight:
    """The weights (beta) of the region branch that reach the highest MAP@all, of equal ones the smallest."""

    overall: float
    per_attribute: dict[str, float]
    curve: dict[float, float]
    """Overall MAP@all in per cent by weight."""
    attribute_curves: dict[str, dict[float, float]]


def asfr_joint(
    valid: Blocks, test: Blocks, schema: AttributeSchema, *, per_attribute: bool = False, missing: int = 0
) -> Result:
    """Evaluate two blocks by ``asfr-map-all/v1`` with the weight that is best on the validation split.

    Args:
        valid: on which the weight is chosen, by ``tune_region_weight``.
        test: which is evaluated.
        schema: the attributes.
        per_attribute: choose a weight for each attribute (that of all for one without queries in ``valid``).
        missing: images of the test lists that were left out because they are not there.

    Returns:
        the result; ``similarity`` says the weight.

    Raises:
        ValueError: as ``asfr_map_all``.
    """
    chosen = tune_region_weight(valid, schema)
    weights = {
        name: chosen.per_attribute.get(name, chosen.overall) if per_attribute else chosen.overall
        for name in schema.names
    }
    embed = joint_embed(test.region, test.patch, weights, schema)
    result = asfr_map_all(test.queries, test.candidates, embed, schema, missing=missing)
    each = ", ".join(f"{weights[name]:g} for {name}" for name in result.queries)
    said = each if per_attribute else f"{chosen.overall:g}"
    return replace(result, similarity=f"cosine with region weight {said}, chosen on valid")


def tune_region_weight(
    valid: Blocks, schema: AttributeSchema, *, weights: ArrayLike = _WEIGHTS
) -> RegionWeight:
    """Choose the weight of the region branch, overall and for each attribute.

    Every weight is ranked in one pass over the scores.

    Args:
        valid: lists and blocks of the validation split.
        schema: the attributes.
        weights: ``[W]`` from 0 to 1, to be tried; 0, 0.05 to 1 by default.

    Raises:
        ValueError: as ``asfr_map_all``, or a weight is outside of [0, 1].
    """
    caller = "tune_region_weight"
    betas = np.asarray(weights, dtype=np.float64)
    if betas.ndim != 1 or not len(betas) or not ((betas >= 0) & (betas <= 1)).all():
        raise ValueError(f"{caller}: weights must be numbers from 0 to 1, got {betas.tolist()}")
    asked, offered = (
        triples(caller, name, rows, schema)
        for name, rows in (("queries", valid.queries), ("candidates", valid.candidates))
    )
    found: dict[str, NDArray[np.float64]] = {}
    for part in single_label_lists(caller, asked, offered, schema):
        blocks = [part.embed(caller, embed, "cosine") for embed in (valid.region, valid.patch)]
        ranked = rank(
            [block[0] for block in blocks],
            [block[1] for block in blocks],
            part.relevant,
            [1],
            np.stack([betas, 1 - betas], axis=1),
        )
        found[part.name] = 100 * ranked.average_precision
    overall = np.concatenate(list(found.values()), axis=1).mean(axis=1)
    means = {name: values.mean(axis=1) for name, values in found.items()}

    def best(curve: NDArray[np.float64]) -> float:
        return min(float(beta) for beta in betas[curve == curve.max()])

    def listed(curve: NDArray[np.float64]) -> dict[float, float]:
        return dict(zip(betas.tolist(), curve.tolist(), strict=True))

    return RegionWeight(
        best(overall),
        {name: best(curve) for name, curve in means.items()},
        listed(overall),
        {name: listed(curve) for name, curve in means.items()},
    )


def joint_embed(
    region: Embed, patch: Embed, weight: float | Mapping[str, float], schema: AttributeSchema
) -> Embed:
    """Join two blocks so that the dot product is ``beta cos(region) + (1 - beta) cos(patch)``.

    Args:
        region, patch: the two blocks.
        weight: beta, or that of each attribute by name.
        schema: the attributes.
    """

    def embed(images: NDArray[np.int64], attribute: int) -> Tensor:
        beta = weight[schema.names[attribute]] if isinstance(weight, Mapping) else weight
        one, other = (torch.as_tensor(block(images, attribute)) for block in (region, patch))
        return joint_embedding(one, other, beta)

    return embed


def split_joint(embeddings: Tensor | NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Take RPF's joint embeddings apart into the blocks of which they were made.

    Args:
        embeddings: ``[..., 2 E]`` ``sqrt(beta) region, sqrt(1 - beta) patch``, beta between 0 and 1.

    Returns:
        region and patch ``[..., E]``, L2-normalised.

    Raises:
        ValueError: a block is zero, as with beta 0 or 1.
    """
    rows = torch.as_tensor(embeddings)
    if rows.shape[-1] % 2:
        raise ValueError(f"split_joint: embeddings must have an even width, got {rows.shape[-1]}")
    region, patch = rows.chunk(2, dim=-1)
    for name, block in (("region", region), ("patch", patch)):
        if rows.numel() and not block.any():
            raise ValueError(
                f"split_joint: the {name} block must not be zero, got a weight of 0 in the model"
            )
    return F.normalize(region, dim=-1), F.normalize(patch, dim=-1)
