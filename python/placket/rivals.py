"""How a model stands against simple rivals: the same lists, the same protocol, the same trunk and time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from placket import baselines, weights
from placket.data import Augment, Dataset, Loader, Preprocess
from placket.nn import AttributeNetwork, Trunk
from placket.protocols import Result, Similarity, asfr_map_all, embed_from

__all__ = ["compare", "pixels", "rows"]


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

    def score(embeddings: Tensor, similarity: Similarity = "cosine") -> Result:
        embed = embed_from(embeddings)
        return asfr_map_all(part.queries, part.candidates, embed, data.schema, similarity=similarity)

    say("16 x 16 pixels")
    yield "16 x 16 pixels", pixels(data, split)

    generator = torch.Generator().manual_seed(seed)
    frozen = _trunk(model, trunk_weights, generator).eval()
    inputs = Preprocess(**{**model.preprocess, "size": feature_size})
    say(f"frozen features at {feature_size} pixels")
    train_maps, train_labels = _features(frozen, data, "train", inputs, threads)
    valid_maps, _ = _features(frozen, data, "valid", inputs, threads)
    maps = valid_maps if split == "valid" else _features(frozen, data, split, inputs, threads)[0]
    yield "pooled frozen features", score(baselines.pooled(maps.mean((2, 3), keepdim=True), len(data.schema)))

    say("ridge regression")
    valid = data.split("valid")

    def by_attribute(embeddings: Tensor) -> list[float]:
        embed = embed_from(embeddings)
        result = asfr_map_all(valid.queries, valid.candidates, embed, data.schema, similarity="dot")
        return [result.per_attribute.get(name, 0.0) for name in data.schema.names]

    ridge = baselines.ridge(train_maps, train_labels, valid_maps, maps, by_attribute)
    yield "ridge, 2 x 2 frozen map", score(ridge.embeddings, "dot")

    say(f"fine-tuning a classifier for {minutes:g} minutes")
    torch.manual_seed(seed)
    trunk = _trunk(model, trunk_weights, generator)
    classifier = baselines.MultiHeadClassifier(trunk, trunk.channels, data.schema.value_counts)
    inputs = Preprocess(**model.preprocess)
    loader = Loader(
        data.split("train"),
        batch=batch,
        preprocess=inputs,
        augment=Augment(flip=0.5),
        seed=seed,
        threads=threads,
    )
    baselines.train_classifier(classifier, _forever(loader), minutes)

    def classified(flip: bool) -> baselines.Classified:
        batches = Loader(part, batch=64, shuffle=False, drop_last=False, preprocess=inputs, threads=threads)
        return baselines.embed_classifier(classifier, (b.images for b in batches), flip=flip)

    found = classified(flip=False)
    yield "classifier, ranked by embedding", score(found.embeddings)
    yield "classifier, ranked by probabilities", score(found.probabilities, "dot")
    mirrored = classified(flip=True)
    yield "classifier, ranked by probabilities, with mirror image", score(mirrored.probabilities, "dot")


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
    embeddings = baselines.pixels(images, len(data.schema))
    return asfr_map_all(part.queries, part.candidates, embed_from(embeddings), data.schema)


def _trunk(model: AttributeNetwork, source: str | None, generator: torch.Generator) -> Trunk:
    trunk = Trunk(model.config.trunk, generator)
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


def _forever(loader: Loader) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        for batch in loader:
            yield batch.images, batch.labels
