"""Ranking by class agreement: whether two images are likely to have the same value of an attribute.

MODC and M3-Net rank by more than the distance of embeddings: ``score = z . z' + weight * p . p'``, where p is
each image's estimated distribution over the attribute's values, so that ``p . p'`` is the probability that
the two share one (reconstruction, ours: neither paper's public part gives the formula). p is an estimate from
the image alone: neither side's label is read.

Any embeddings can be ranked so, with the centres of a split's classes, which need no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from placket import ops
from placket.nn.modc import assignment
from placket.protocols import Embed, Result, asfr_map_all
from placket.protocols._ranking import rank
from placket.protocols.asfr import single_label_lists, triples
from placket.schema import AttributeSchema

__all__ = ["Agreement", "Labelled", "agreement_embed", "class_agreement", "class_means", "tune_agreement"]

TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5)
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)


class Labelled(NamedTuple):
    """The lists of a split, its embeddings, and, where a classifier gives them, its class probabilities."""

    queries: ArrayLike
    """[Q, 3] rows (image, attribute, value)."""
    candidates: ArrayLike
    """[C, 3] the same."""
    embed: Embed
    """L2-normalised or zero rows; see ``placket.protocols.embed_from``."""
    probabilities: Embed | None = None
    """Rows ``[n, values]`` of an attribute; None: of class centres."""


@dataclass(frozen=True)
class Agreement:
    """The settings that reach the highest MAP@all on a split; of equal ones the first that was tried."""

    temperature: float | None
    """Of the class probabilities in ``weight``; None for given probabilities."""
    weight: float
    classes_temperature: float | None
    """The same where they rank alone."""


def class_agreement(
    valid: Labelled,
    test: Labelled,
    centres: Sequence[Tensor] | None,
    schema: AttributeSchema,
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    weights: Sequence[float] = WEIGHTS,
    missing: int = 0,
) -> dict[str, Result]:
    """Rank by embeddings, by class agreement, and by both, by ``asfr-map-all/v1``.

    Args:
        valid: on which temperature and weight are chosen, by ``tune_agreement``.
        test: which is ranked. Its values say what is relevant and nothing else.
        centres: of each attribute ``[values, D]``: a ``Modc``'s, or ``class_means`` of any embeddings. None
            where both splits have probabilities.
        schema: the attributes.
        temperatures, weights: to be tried.
        missing: images of the test lists that were left out because they are not there.

    Returns:
        "embedding" (cosine), "classes" (``p . p'``) and "both"; ``similarity`` says what was chosen.

    Raises:
        ValueError: as ``asfr_map_all``; neither centres nor probabilities are given, or both are; a
            temperature is not positive or a weight negative.
    """
    found = tune_agreement(valid, centres, schema, temperatures=temperatures, weights=weights)
    alone = _probabilities(test, centres, schema, found.classes_temperature)
    mixed = _probabilities(test, centres, schema, found.temperature)
    lists = test.queries, test.candidates

    def said(text: str, temperature: float | None) -> str:
        return text if temperature is None else f"{text}, temperature {temperature:g}, chosen on valid"

    classes = asfr_map_all(*lists, alone, schema, similarity="dot", missing=missing)
    both = agreement_embed(test.embed, mixed, found.weight)
    joint = asfr_map_all(*lists, both, schema, similarity="dot", missing=missing)
    return {
        "embedding": asfr_map_all(*lists, test.embed, schema, missing=missing),
        "classes": replace(classes, similarity=said("class agreement", found.classes_temperature)),
        "both": replace(
            joint,
            similarity=said(f"cosine + {found.weight:g} class agreement, chosen on valid", found.temperature),
        ),
    }


def tune_agreement(
    valid: Labelled,
    centres: Sequence[Tensor] | None,
    schema: AttributeSchema,
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    weights: Sequence[float] = WEIGHTS,
) -> Agreement:
    """Choose the temperature of class probabilities and the weight of their agreement on a split.

    Every pair is ranked in one pass over the scores.

    Args:
        valid: the split.
        centres, schema, temperatures, weights: see ``class_agreement``.

    Raises:
        ValueError: as ``class_agreement``.
    """
    caller = "tune_agreement"
    if not temperatures or min(temperatures) <= 0:
        raise ValueError(f"{caller}: temperatures must be positive numbers, got {list(temperatures)}")
    if not weights or min(weights) < 0:
        raise ValueError(f"{caller}: weights must be numbers from 0 on, got {list(weights)}")
    tried: Sequence[float | None] = temperatures if valid.probabilities is None else (None,)
    views = [_probabilities(valid, centres, schema, temperature) for temperature in tried]
    # A column for the embeddings and one for each view; the last rows rank by a view alone.
    mixtures = np.zeros((len(tried) * len(weights) + len(tried), 1 + len(tried)))
    mixtures[: -len(tried), 0] = 1
    mixtures[: -len(tried), 1:] = np.kron(np.eye(len(tried)), np.asarray(weights)[:, None])
    mixtures[-len(tried) :, 1:] = np.eye(len(tried))
    asked, offered = (
        triples(caller, name, rows, schema)
        for name, rows in (("queries", valid.queries), ("candidates", valid.candidates))
    )
    found = []
    for part in single_label_lists(caller, asked, offered, schema):
        spaces = [part.embed(caller, valid.embed, "cosine")]
        spaces += [part.embed(caller, view, "dot") for view in views]
        queries, candidates = zip(*spaces, strict=True)
        found.append(rank(queries, candidates, part.relevant, [1], mixtures).average_precision)
    overall = np.concatenate(found, axis=1).mean(axis=1)
    best, best_alone = int(overall[: -len(tried)].argmax()), int(overall[-len(tried) :].argmax())
    return Agreement(tried[best // len(weights)], weights[best % len(weights)], tried[best_alone])


def agreement_embed(embed: Embed, probabilities: Embed, weight: float) -> Embed:
    """Join embeddings and class probabilities so that the dot product is ``z . z' + weight * p . p'``.

    The rows are for ``asfr_map_all(..., similarity="dot")``, or for any search by dot product.
    """

    def joined(images: NDArray[np.int64], attribute: int) -> Tensor:
        z, p = (
            torch.as_tensor(part).float()
            for part in (embed(images, attribute), probabilities(images, attribute))
        )
        return torch.cat([F.normalize(z, dim=1), weight**0.5 * p.to(z.device)], dim=1)

    return joined


def class_means(labels: ArrayLike, embed: Embed, schema: AttributeSchema) -> list[Tensor]:
    """Return the class centres of a split: the normalised mean of each value's unit embeddings.

    Args:
        labels: ``[L, 3]`` rows (image, attribute, value), of the training split, say.
        embed: called once for each attribute with the images that carry a label of it.
        schema: the attributes.

    Returns:
        for each attribute ``[values, D]``; zero for a value without images, and ``[values, 0]`` for an
        attribute without labels.
    """
    rows = triples("class_means", "labels", labels, schema)
    means = []
    for attribute, values in enumerate(schema.value_counts):
        own = rows[rows[:, 1] == attribute]
        if not len(own):
            means.append(torch.zeros(values, 0))
            continue
        z = torch.as_tensor(embed(own[:, 0].copy(), attribute)).detach().float()
        none_yet = z.new_zeros(values, z.shape[1])
        means.append(ops.class_centres(none_yet, z, torch.from_numpy(own[:, 2].copy()).to(z.device), 0.0))
    return means


def _probabilities(
    split: Labelled, centres: Sequence[Tensor] | None, schema: AttributeSchema, temperature: float | None
) -> Embed:
    given = split.probabilities
    if (given is None) == (centres is None):
        both = "both" if centres is not None else "neither"
        raise ValueError(f"class_agreement: either centres or probabilities must be given, got {both}")
    if given is not None:
        return given
    assert centres is not None
    if len(centres) != len(schema):
        raise ValueError(
            f"class_agreement: centres must be those of the {len(schema)} attributes, got {len(centres)}"
        )
    known: Sequence[Tensor] = centres

    def embed(images: NDArray[np.int64], attribute: int) -> Tensor | NDArray[Any]:
        assert temperature is not None
        z = torch.as_tensor(split.embed(images, attribute)).float()
        own = known[attribute].to(z)
        if not own.shape[1]:  # no label of the attribute in the split of the centres
            return z.new_zeros(len(z), len(own))
        return assignment(z, own, temperature)

    return embed
