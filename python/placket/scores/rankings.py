"""The ways to rank a model's embeddings: as they are, by class agreement, and by both.

Class agreement is the estimated probability that two images share their value. MODC and M3-Net rank by it in
part, and no paper says how much of a gain it is; here every method is ranked by it in one way: the classes'
centres are the mean directions of the training images' embeddings, and an image's class probabilities the
softmax of its cosines with the centres over a temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from placket.data import Dataset
from placket.data.columns import Labels
from placket.protocols import Blocks, Result, Similarity, asfr_joint, asfr_map_all, embed_from, split_joint
from placket.protocols._ranking import rank
from placket.protocols.asfr import single_label_lists, triples

__all__ = ["Ranked", "by_region_weight", "class_probabilities", "rank_both_ways"]

_TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5)
_WEIGHTS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


class Ranked(NamedTuple):
    """A ranking of the test split, and of the validation split by the same choices."""

    test: Result
    valid: Result


def rank_both_ways(
    data: Dataset,
    valid: Tensor,
    test: Tensor,
    probabilities: Sequence[tuple[Tensor, Tensor]],
) -> dict[str, Ranked]:
    """Rank by "embedding", by "agreement", and by "both": ``cos(z, z') + weight * p . p'``.

    Which probabilities, and the weight, are chosen for each attribute on "valid".

    Args:
        data: whose "valid" and "test" lists are ranked by ``asfr-map-all/v1``.
        valid, test: ``[N, A, D]`` embeddings of the splits' images, L2-normalised.
        probabilities: candidates for the class probabilities ``[N, A, V]`` of both splits.
    """
    spaces = {
        "valid": (valid, [pair[0] for pair in probabilities]),
        "test": (test, [pair[1] for pair in probabilities]),
    }
    chosen = _choose(data, *spaces["valid"])

    def ranked(split: str) -> dict[str, Result]:
        part, (embeddings, given) = data.split(split), spaces[split]
        own = [given[choice.agreement][:, a] for a, choice in enumerate(chosen)]
        weighted = [choice.weight**0.5 * given[choice.both][:, a] for a, choice in enumerate(chosen)]
        rows: list[tuple[str, Tensor, Similarity]] = [
            ("embedding", embeddings, "cosine"),
            ("agreement", torch.stack(own, dim=1), "dot"),
            ("both", torch.cat([embeddings, torch.stack(weighted, dim=1)], dim=2), "dot"),
        ]
        return {
            name: asfr_map_all(
                part.queries, part.candidates, embed_from(found), data.schema, similarity=similarity
            )
            for name, found, similarity in rows
        }

    on_valid = ranked("valid")
    return {name: Ranked(result, on_valid[name]) for name, result in ranked("test").items()}


def class_probabilities(
    train: Tensor, labels: Labels, valid: Tensor, test: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Return the class probabilities of two splits' images by the centres, for each of some temperatures.

    Args:
        train: ``[N, A, D]`` embeddings of the training images, L2-normalised.
        labels: theirs.
        valid, test: ``[M, A, D]`` embeddings.

    Returns:
        pairs ``[M, A, V]``, V the most values of an attribute; 0 for a value without a training image.
    """
    width = max(labels.values)
    centres = torch.zeros(train.shape[1], width, train.shape[2])
    images, attributes, values = (
        torch.from_numpy(array.astype(np.int64))
        for array in (labels.images(), labels.attribute, labels.value)
    )
    centres.index_put_((attributes, values), train[images, attributes], accumulate=True)
    known = centres.any(dim=2)
    cosines = [torch.einsum("nad,avd->nav", part, F.normalize(centres, dim=2)) for part in (valid, test)]

    def softmax(logits: Tensor) -> Tensor:
        # An attribute without any label knows nothing, and the softmax of nothing would be NaN.
        return logits.masked_fill(~known, -torch.inf).softmax(dim=2).nan_to_num(0.0)

    return [
        (softmax(cosines[0] / temperature), softmax(cosines[1] / temperature))
        for temperature in _TEMPERATURES
    ]


def by_region_weight(data: Dataset, valid: Tensor, test: Tensor) -> Result:
    """Rank joint embeddings ``[N, A, 2 E]`` with each attribute's own weight of the region branch."""

    def blocks(split: str, embeddings: Tensor) -> Blocks:
        part = data.split(split)
        region, patch = (embed_from(block) for block in split_joint(embeddings))
        return Blocks(part.queries, part.candidates, region, patch)

    return asfr_joint(blocks("valid", valid), blocks("test", test), data.schema, per_attribute=True)


class _Choice(NamedTuple):
    agreement: int = 0  # which probabilities
    both: int = 0
    weight: float = 1.0


def _choose(data: Dataset, embeddings: Tensor, probabilities: Sequence[Tensor]) -> list[_Choice]:
    """Return the best choice for each attribute, of equal ones the first."""
    part = data.split("valid")
    queries, candidates = (
        triples("rank_both_ways", "lists", rows, data.schema) for rows in (part.queries, part.candidates)
    )
    weights = np.array([(0.0, 1.0), *((1.0, weight) for weight in _WEIGHTS)])
    chosen = [_Choice()] * len(data.schema)
    for lists in single_label_lists("rank_both_ways", queries, candidates, data.schema):
        cosine = lists.embed("rank_both_ways", embed_from(embeddings), "cosine")
        figures = []
        for given in probabilities:
            dot = lists.embed("rank_both_ways", embed_from(given), "dot")
            spaces = [cosine[0], dot[0]], [cosine[1], dot[1]]
            figures.append(rank(*spaces, lists.relevant, [1], weights).average_precision.mean(axis=1))
        table = np.stack(figures)  # [probabilities, 1 + weights]
        both, weight = np.unravel_index(table[:, 1:].argmax(), table[:, 1:].shape)
        chosen[lists.attribute] = _Choice(int(table[:, 0].argmax()), int(both), _WEIGHTS[weight])
    return chosen
