"""Composed queries, an image and a text that says what shall differ, made from any catalogue."""

from __future__ import annotations

import string
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from placket.data.columns import Texts, smallest
from placket.data.dataset import Compositions, DatasetError, Split, brief

__all__ = ["REPLACE", "composed", "joined_captions", "text_problem"]

REPLACE = "replace {reference} with {target}"
"""The text of Fashion200k (Han et al., ICCV 2017), as TIRG (Vo et al., CVPR 2019) asks it."""

_CAPTION_STREAM = 0x63617074 << 32  # above any epoch; sets the numbers apart from those of other uses


def composed(split: Split, attribute: str, text: str | Callable[[str, str], str] = REPLACE) -> Compositions:
    """Make composed queries by the rule of Fashion200k.

    Each ordered pair of images of one identity whose values of the attribute differ is a query: the first
    image with the text asks for the second; nothing else has to agree. Images without an identity, and with
    no value of the attribute or several, are in no pair. Queries are in the order of references, then of
    targets.

    Every image of the target's identity and value answers the query rightly, not the target alone: they have
    one number in ``Compositions.groups``. Where there are k such images, each is the target of a query of its
    own with the same reference and text.

    Args:
        split: the images, with identities.
        attribute: what shall differ.
        text: pattern with ``{reference}`` and ``{target}`` for the names of the two values, or a function of
            both names that returns the text.

    Raises:
        ValueError: there is no such attribute, or ``text`` is no such pattern.
        DatasetError: the split has no identities.
    """
    if isinstance(text, str) and text_problem(text) is not None:
        raise ValueError(f"composed: text must be {text_problem(text)}, got {brief(text)}")
    if split.identities is None:
        raise DatasetError(f"{split.root}: split '{split.name}' must have identities to compose, got none")
    number = split.schema.index(attribute)
    chosen = split.labels.attribute == number
    labelled, first, count = np.unique(split.labels.images()[chosen], return_index=True, return_counts=True)
    usable = (count == 1) & (split.identities[labelled] >= 0)
    images = labelled[usable]
    values = split.labels.value[chosen][first[usable]].astype(np.int64)
    identities = split.identities[images].astype(np.int64)

    # All pairs within each identity, as places in its run of the images sorted by identity.
    order = np.argsort(identities, kind="stable")
    images, values, identities = images[order], values[order], identities[order]
    _, begin, size = np.unique(identities, return_index=True, return_counts=True)
    begin, size = np.repeat(begin, size), np.repeat(size, size)
    reference = np.repeat(np.arange(len(images)), size)
    target = np.arange(len(reference)) - np.repeat(np.cumsum(size) - size, size) + np.repeat(begin, size)
    differ = values[reference] != values[target]
    reference, target = reference[differ], target[differ]
    order = np.lexsort((images[target], images[reference]))
    reference, target = reference[order], target[order]

    groups = np.full(len(split), -1)
    _, groups[images] = np.unique(np.stack([identities, values], axis=1), axis=0, return_inverse=True)
    is_target = np.zeros(len(split), dtype=np.bool_)
    is_target[images[target]] = True
    names = split.schema[number].values
    say = text if callable(text) else lambda a, b: text.format(reference=a, target=b)
    pairs = list(zip(values[reference].tolist(), values[target].tolist(), strict=True))
    said = {(a, b): say(names[a], names[b]) for a, b in dict.fromkeys(pairs)}
    return Compositions(
        reference=smallest(images[reference]),
        target=smallest(images[target]),
        captions=Texts(said[pair] for pair in pairs),
        begin=smallest(np.arange(len(pairs) + 1)),
        groups=smallest(np.where(is_target, groups, -1)),
    )


def text_problem(text: str) -> str | None:
    """Return what a pattern of ``composed`` must be, where it is not."""
    want = "a pattern with {reference} and {target} alone"
    try:
        fields = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        return f"{want} ({error})"
    plain = {("reference", "", None), ("target", "", None)}
    return None if plain.issuperset(fields) else want


def joined_captions(compositions: Compositions, *, seed: int | None = None, epoch: int = 0) -> list[str]:
    """Return one text for each query, of its sentences joined by "and".

    Without a seed, for evaluation, all sentences in their order: "A and B". With one, for training, each
    query of an epoch has by equal chances all its sentences, in an order by chance, or one of them: of two
    sentences A and B each of "A and B", "B and A", "A" and "B" in a quarter of the epochs, as CLIP4Cir
    (Baldrati et al., CVPR Workshops 2022) trains on FashionIQ. Sentences lose spaces, full stops, commas and
    question marks at their ends, and empty ones are left out.

    Args:
        compositions: the queries.
        seed: names the random numbers; what a query gets depends on seed, epoch and its place alone.
        epoch: from 0.
    """
    begin = compositions.begin.tolist()
    sentences = [caption.strip(" .,?\t\n") for caption in compositions.captions]
    of_query = [sentences[first:last] for first, last in pairwise(begin)]
    of_query = [[sentence for sentence in each if sentence] for each in of_query]
    if seed is not None:
        most = max(map(len, of_query), default=0)
        key = np.array([seed, _CAPTION_STREAM + epoch], dtype=np.uint64)
        chances = np.random.Generator(np.random.Philox(key=key)).random((len(of_query), 1 + most))
        orders = [np.argsort(row[1 : 1 + len(each)]) for row, each in zip(chances, of_query, strict=True)]
        of_query = [
            [each[i] for i in (order[:1] if chance < 0.5 else order)]
            for each, order, chance in zip(of_query, orders, chances[:, 0].tolist(), strict=True)
        ]
    return [" and ".join(each) for each in of_query]
