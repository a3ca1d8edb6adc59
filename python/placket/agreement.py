"""Ranking by class agreement: whether two images are likely to have the same value of an attribute.

MODC and M3-Net rank by more than the distance of embeddings: ``score = z . z' + weight * p . p'``, where p is
each image's estimated distribution over the attribute's values, so that ``p . p'`` is the probability that
the two share one (reconstruction, ours: neither paper's public part gives the formula). p is an estimate from
the image alone: neither side's label is read.

Any embeddings can be ranked so, with the centres of the training split's classes::

    means = class_means(labels, embed, schema)
    valid = Labelled(queries, candidates, embed, centre_probabilities(embed, means))
    ...
    class_agreement(valid, test, schema)["both"].test
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from placket import ops
from placket.nn.network import assignment
from placket.protocols import Embed, Result, Similarity, asfr_map_all
from placket.protocols._ranking import Reals, rank
from placket.protocols.asfr import single_label_lists, triples
from placket.schema import AttributeSchema

__all__ = [
    "Choice",
    "Labelled",
    "Ranked",
    "agreement_embed",
    "centre_probabilities",
    "class_agreement",
    "class_means",
    "tune_agreement",
]

TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5)
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)


class Labelled(NamedTuple):
    """The lists of a split, its embeddings, and what its class probabilities may be."""

    queries: ArrayLike
    """[Q, 3] rows (image, attribute, value)."""
    candidates: ArrayLike
    """[C, 3] the same."""
    embed: Embed
    """L2-normalised or zero rows; see ``placket.protocols.embed_from``."""
    probabilities: Mapping[str, Embed]
    """By name, at least one: rows ``[n, values]`` of an attribute, of ``centre_probabilities`` or a model's
    own. They and ``embed`` are called for each of them, and so should look up what is there."""
    missing: int = 0
    """Images of the lists that were left out because they are not there."""


class Choice(NamedTuple):
    """What ranks an attribute."""

    alone: str
    """Name of the class probabilities that rank without embeddings."""
    joined: str
    """Name of those that rank with them."""
    weight: float
    """Of their agreement."""


class Ranked(NamedTuple):
    """A ranking of the test split, and of the validation split by the same choices."""

    test: Result
    valid: Result
    chosen: Mapping[str, str]
    """Of each attribute the class probabilities that rank it, behind their weight where they rank with
    embeddings; empty where embeddings rank alone."""


def class_agreement(
    valid: Labelled,
    test: Labelled,
    schema: AttributeSchema,
    *,
    weights: Sequence[float] = WEIGHTS,
    per_attribute: bool = False,
) -> dict[str, Ranked]:
    """Rank by embeddings, by class agreement, and by both, by ``asfr-map-all/v1``.

    Args:
        valid: on which class probabilities and weight are chosen, by ``tune_agreement``.
        test: with class probabilities of the same names. Its values say what is relevant and nothing else.
        schema: the attributes.
        weights, per_attribute: see ``tune_agreement``.

    Returns:
        "embedding" (cosine), "agreement" (``p . p'``) and "both"; ``similarity`` says what was chosen.

    Raises:
        ValueError: as ``asfr_map_all`` and ``tune_agreement``; the splits have probabilities of different
            names.
    """
    if valid.probabilities.keys() != test.probabilities.keys():
        raise ValueError(
            "class_agreement: probabilities must have the same names on valid and test, got "
            f"{list(valid.probabilities)} and {list(test.probabilities)}"
        )
    chosen = tune_agreement(valid, schema, weights=weights, per_attribute=per_attribute)
    alone = [choice.alone for choice in chosen]
    joined = [choice.joined for choice in chosen]
    mixture = [choice.weight for choice in chosen]
    weighted = [f"{choice.weight:g} {choice.joined}" for choice in chosen]
    names = {
        ranking: dict(zip(schema.names, each, strict=True))
        for ranking, each in (("agreement", alone), ("both", weighted))
    }
    how = "chosen on valid" if len(weights) > 1 else "probabilities chosen on valid"

    def described(result: Result, ranking: str, similarity: str) -> Result:
        each = names[ranking]
        by_attribute = "; ".join(f"{name}: {each[name]}" for name in result.queries)
        said = by_attribute if per_attribute else each[schema.names[0]]
        return replace(result, similarity=f"{similarity} ({said}), {how}")

    def ranked(split: Labelled) -> dict[str, Result]:
        def by(embed: Embed, similarity: Similarity) -> Result:
            lists = split.queries, split.candidates
            return asfr_map_all(*lists, embed, schema, similarity=similarity, missing=split.missing)

        mixed = agreement_embed(split.embed, _picked(split, joined), mixture)
        return {
            "embedding": by(split.embed, "cosine"),
            "agreement": described(by(_picked(split, alone), "dot"), "agreement", "class agreement"),
            "both": described(by(mixed, "dot"), "both", "cosine + class agreement"),
        }

    on_valid = ranked(valid)
    return {
        name: Ranked(result, on_valid[name], names.get(name, {})) for name, result in ranked(test).items()
    }


def tune_agreement(
    valid: Labelled,
    schema: AttributeSchema,
    *,
    weights: Sequence[float] = WEIGHTS,
    per_attribute: bool = False,
) -> list[Choice]:
    """Choose the class probabilities and the weight of their agreement by the MAP@all of a split.

    Args:
        valid: the split.
        schema: the attributes.
        weights: to be tried.
        per_attribute: choose for each attribute alone, and not by the mean over all queries; an attribute
            without queries has what is best for all.

    Returns:
        for each attribute the best choice, of equal ones the first.

    Raises:
        ValueError: as ``asfr_map_all``; there are no probabilities or weights, or a weight is negative.
    """
    caller = "tune_agreement"
    if not valid.probabilities:
        raise ValueError(f"{caller}: probabilities must be at least one, got none")
    if not weights or min(weights) < 0:
        raise ValueError(f"{caller}: weights must be numbers from 0 on, got {list(weights)}")
    names = list(valid.probabilities)
    mixtures = np.array([(0.0, 1.0), *((1.0, weight) for weight in weights)])
    asked, offered = (
        triples(caller, name, rows, schema)
        for name, rows in (("queries", valid.queries), ("candidates", valid.candidates))
    )
    found: dict[int, Reals] = {}  # [probabilities, 1 + weights, queries] of each attribute
    for part in single_label_lists(caller, asked, offered, schema):
        cosine = part.embed(caller, valid.embed, "cosine")
        figures = []
        for given in valid.probabilities.values():
            queries, candidates = zip(cosine, part.embed(caller, given, "dot"), strict=True)
            figures.append(rank(queries, candidates, part.relevant, [1], mixtures).average_precision)
        found[part.attribute] = np.stack(figures)

    def best(figures: Reals) -> Choice:
        means = figures.mean(axis=2)
        joined, weight = np.unravel_index(means[:, 1:].argmax(), means[:, 1:].shape)
        return Choice(names[means[:, 0].argmax()], names[joined], weights[weight])

    overall = best(np.concatenate(list(found.values()), axis=2))
    if not per_attribute:
        return [overall] * len(schema)
    return [best(found[a]) if a in found else overall for a in range(len(schema))]


def agreement_embed(embed: Embed, probabilities: Embed, weight: float | Sequence[float]) -> Embed:
    """Join embeddings and class probabilities so that the dot product is ``z . z' + weight * p . p'``.

    The rows are for ``asfr_map_all(..., similarity="dot")``, or for any search by dot product.

    Args:
        embed: gives z, normalised here.
        probabilities: gives p.
        weight: at least 0, of all attributes or of each.
    """

    def joined(images: NDArray[np.int64], attribute: int) -> Tensor:
        z, p = (
            torch.as_tensor(part).float()
            for part in (embed(images, attribute), probabilities(images, attribute))
        )
        own = weight[attribute] if isinstance(weight, Sequence) else weight
        return torch.cat([F.normalize(z, dim=1), own**0.5 * p.to(z.device)], dim=1)

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


def centre_probabilities(
    embed: Embed,
    centres: Sequence[Tensor],
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    name: str = "class means",
) -> dict[str, Embed]:
    """Return class probabilities by the nearest centres, for each temperature.

    Args:
        embed: the embeddings of a split.
        centres: of each attribute ``[values, D]``: ``class_means`` of any embeddings, or a ``Modc``'s.
        temperatures: of the softmax of the cosines, see ``placket.nn.network.assignment``.
        name: what the centres are; begins the names of the probabilities.

    Returns:
        for ``Labelled``; 0 for a value whose centre is 0, and for an attribute without centres.

    Raises:
        ValueError: a temperature is not positive; when called, ``centres`` lack the attribute.
    """
    caller = "centre_probabilities"
    if not temperatures or min(temperatures) <= 0:
        raise ValueError(f"{caller}: temperatures must be positive numbers, got {list(temperatures)}")

    def at(temperature: float) -> Embed:
        def probabilities(images: NDArray[np.int64], attribute: int) -> Tensor:
            if attribute >= len(centres):
                raise ValueError(f"{caller}: centres must be those of every attribute, got {len(centres)}")
            z = torch.as_tensor(embed(images, attribute)).float()
            own = centres[attribute].to(z)
            if not own.shape[1]:  # no label of the attribute in the split of the centres
                return z.new_zeros(len(z), len(own))
            return assignment(z, own, temperature)

        return probabilities

    return {f"{name}, temperature {temperature:g}": at(temperature) for temperature in temperatures}


def _picked(split: Labelled, names: Sequence[str]) -> Embed:
    """Return the class probabilities in which each attribute has those of a name."""

    def embed(images: NDArray[np.int64], attribute: int) -> Tensor | NDArray[Any]:
        return split.probabilities[names[attribute]](images, attribute)

    return embed
