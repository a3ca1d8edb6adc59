"""How a model stands against simple rivals: the same lists, the same protocol, the same trunk and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from placket import baselines, weights
from placket.data import Augment, Dataset, Loader, Preprocess, Split
from placket.nn import AttributeNetwork, Trunk
from placket.protocols import Result, Similarity, asfr_map_all, embed_from

__all__ = [
    "Frozen",
    "classified",
    "classifier_on",
    "compare",
    "frozen",
    "make_trunk",
    "pixels",
    "repeated",
    "rows",
    "score",
]


def compare(
    model: AttributeNetwork,
    data: Dataset,
    split: str = "test",
    *,
    trunk_weights: str | None,
    minutes: float,
    feature_size: int = 224,
    batch: int = 48,
    threads: int = 2,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[str, Result]]:
    """Evaluate the rivals of a model one by one.

    16 x 16 pixels; the model's trunk as ``trunk_weights`` made it, pooled; ridge regression of each attribute
    on its map averaged to 2 x 2 (strength chosen on the validation split); and the same trunk fine-tuned for
    a time with a plain classifier head for each attribute, ranked by its embedding, by its class
    probabilities, and by the probabilities averaged over the picture and its mirror image. Ridge scores and
    probabilities are ranked by dot product, which they do better by, the rest by cosine. Chance is the floor
    of every result.

    Args:
        model: gives trunk and preprocessing.
        data: learned from on "train", chosen on "valid".
        split: to be evaluated.
        trunk_weights: what the trunk starts from, as ``placket.weights.load_trunk`` takes it; None: random.
        minutes: to fine-tune the classifier, as long as the model was trained.
        feature_size: side in pixels of the input for frozen features; the classifier sees the model's.
        batch: images a step of the classifier.
        threads: that decode.
        seed: of initial values and sampling.
        say: told before each rival what is being done.

    Yields:
        name and result.
    """
    part = data.split(split)
    say("16 x 16 pixels")
    yield "16 x 16 pixels", pixels(data, split)

    generator = torch.Generator().manual_seed(seed)
    frozen_inputs = Preprocess(**{**model.preprocess, "size": feature_size})
    found = frozen(
        make_trunk(model.config.trunk, trunk_weights, generator), data, split, frozen_inputs, threads, say
    )
    yield "pooled frozen features", found.pooled
    yield "ridge, 2 x 2 frozen map", found.ridge

    say(f"fine-tuning a classifier for {minutes:g} minutes")
    torch.manual_seed(seed)
    inputs = Preprocess(**model.preprocess)
    loader = Loader(
        data.split("train"),
        batch=batch,
        preprocess=inputs,
        augment=Augment(flip=0.5),
        seed=seed,
        threads=threads,
    )
    classifier = classifier_on(make_trunk(model.config.trunk, trunk_weights, generator), data)
    baselines.train_classifier(
        classifier, repeated(loader), minutes, freeze_batch_norm=trunk_weights is not None
    )
    plain, mirrored = (
        classified(classifier, part, inputs, flip=flip, threads=threads) for flip in (False, True)
    )
    yield "classifier, ranked by embedding", score(data, split, plain.embeddings)
    yield "classifier, ranked by probabilities", score(data, split, plain.probabilities, "dot")
    name = "classifier, ranked by probabilities, with mirror image"
    yield name, score(data, split, mirrored.probabilities, "dot")


def rows(results: Mapping[str, Result]) -> list[dict[str, object]]:
    """Return the rows of a table of several results by the same lists, chance last; see ``report``."""
    table: list[dict[str, object]] = [
        {
            "method": name,
            "overall": result.overall,
            "95 % interval": result.interval,
            **result.per_attribute,
        }
        for name, result in results.items()
    ]
    last = list(results.values())[-1]
    table.append({"method": "chance", "overall": last.floor_overall, "95 % interval": None, **last.floor})
    return table


def pixels(data: Dataset, split: str = "test") -> Result:
    """Evaluate 16 x 16 pixels, the mean colour removed, on a split's lists."""
    part = data.split(split)
    # Mean 0 and standard deviation 1/255 leave the grey levels as they are.
    levels = Preprocess(size=64, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    loader = Loader(part, batch=100, shuffle=False, drop_last=False, preprocess=levels)
    images = torch.cat([batch.images.round().to(torch.uint8) for batch in loader])
    return score(data, split, baselines.pixels(images, len(data.schema)))


class Frozen(NamedTuple):
    """What the features of a frozen trunk give."""

    pooled: Result
    ridge: Result
    images_per_second: float  # of the trunk


def frozen(
    trunk: Trunk,
    data: Dataset,
    split: str,
    inputs: Preprocess,
    threads: int = 2,
    say: Callable[[str], None] = lambda text: None,
) -> Frozen:
    """Evaluate a trunk as it is: its pooled map, and ridge regression on its map averaged to 2 x 2.

    Args:
        trunk: is put into evaluation mode.
        data: the regression learns from "train"; its strength is chosen on "valid".
        split: to be evaluated.
        inputs: from decoded image to input.
        threads: that decode.
        say: told what is being done.
    """
    trunk.eval()
    say(f"frozen features at {inputs.size} pixels")
    start = time.monotonic()
    (train_maps, train_labels), (valid_maps, _) = (
        _features(trunk, data, name, inputs, threads) for name in ("train", "valid")
    )
    seconds = time.monotonic() - start
    maps = valid_maps if split == "valid" else _features(trunk, data, split, inputs, threads)[0]
    pooled = baselines.pooled(maps.mean((2, 3), keepdim=True), len(data.schema))

    def by_attribute(embeddings: Tensor) -> list[float]:
        result = score(data, "valid", embeddings, "dot")
        return [result.per_attribute.get(name, 0.0) for name in data.schema.names]

    say("ridge regression")
    ridge = baselines.ridge(train_maps, train_labels, valid_maps, maps, by_attribute)
    return Frozen(
        score(data, split, pooled),
        score(data, split, ridge.embeddings, "dot"),
        (len(train_maps) + len(valid_maps)) / seconds,
    )


def classifier_on(trunk: Trunk, data: Dataset) -> baselines.MultiHeadClassifier:
    """Return a classifier of a data set's attributes; its heads take torch's default generator."""
    return baselines.MultiHeadClassifier(trunk, trunk.channels, data.schema.value_counts)


def classified(
    classifier: baselines.MultiHeadClassifier,
    part: Split,
    inputs: Preprocess,
    *,
    flip: bool = False,
    threads: int = 2,
) -> baselines.Classified:
    """Embed every image of a split by a classifier; ``flip`` as in ``baselines.embed_classifier``."""
    batches = Loader(part, batch=64, shuffle=False, drop_last=False, preprocess=inputs, threads=threads)
    return baselines.embed_classifier(classifier, (batch.images for batch in batches), flip=flip)


def score(data: Dataset, split: str, embeddings: Tensor, similarity: Similarity = "cosine") -> Result:
    """Evaluate embeddings ``[N, A, D]`` of a split's images by its lists (``asfr-map-all/v1``)."""
    part = data.split(split)
    embed = embed_from(embeddings)
    return asfr_map_all(part.queries, part.candidates, embed, data.schema, similarity=similarity)


def repeated(loader: Loader) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and labels of one epoch after another, without an end."""
    while True:
        for batch in loader:
            yield batch.images, batch.labels


def make_trunk(description: str, source: str | None, generator: torch.Generator) -> Trunk:
    """Return a trunk that starts from a source of weights, as ``load_trunk`` takes it; None: random."""
    trunk = Trunk(description, generator)
    if source is not None:
        weights.load_trunk(trunk, source)
    return trunk


@torch.inference_mode()
def _features(
    trunk: Trunk, data: Dataset, split: str, inputs: Preprocess, threads: int
) -> tuple[Tensor, Tensor]:
    """Maps ``[N, C, 2, 2]`` and labels ``[N, A]`` of a split."""
    part = data.split(split)
    loader = Loader(part, batch=64, shuffle=False, drop_last=False, preprocess=inputs, threads=threads)
    maps, labels = [], []
    for batch in loader:
        maps.append(torch.nn.functional.adaptive_avg_pool2d(trunk(batch.images), 2))
        labels.append(batch.labels)
    return torch.cat(maps), torch.cat(labels)
