"""One training of the bench: a method, or the rivals, with one seed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from placket import _C, baselines, rivals
from placket.agreement import Labelled, Ranked, class_agreement, class_means
from placket.config import TrainConfig
from placket.data import Augment, Dataset, Loader, Preprocess, Split
from placket.evaluate import class_estimates, embed_split
from placket.protocols import Blocks, Embed, Result, asfr_joint, embed_from, split_joint
from placket.scores.settings import Bench
from placket.train import Trainer, stage_model, train

__all__ = ["MIRRORED", "Record", "fit_epochs", "fit_steps", "run_method", "run_rivals"]

MIRRORED = ", mirrored"
"""Ends the name of a ranking by flip averaging."""
_WARM_UP = 3  # steps before the clock starts: first batches, buffers, frequencies


@dataclass(frozen=True)
class Record:
    """What one training of one row of the table gave."""

    title: str
    rankings: dict[str, Result]
    """By "embedding", "agreement", "both"; the same with ``MIRRORED``; "region weight"."""
    valid: dict[str, float]
    """Overall MAP of some of the rankings on "valid", where choices are made."""
    seconds: float
    """Of the training, all stages together."""
    trained_images: int
    """Seen in training, over all steps."""
    images_per_second: float
    """Embedded under every attribute, reading included; 0 where nothing is embedded."""
    parameters: int
    chosen: dict[str, dict[str, str]] = field(default_factory=dict)
    """By way of ranking, of each attribute the class probabilities that were chosen on "valid"; behind their
    weight where they rank with embeddings."""

    def to_dict(self) -> dict[str, Any]:
        rankings = {name: result.to_dict() for name, result in self.rankings.items()}
        return {**vars(self), "rankings": rankings}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Record:
        rankings = {name: Result.from_dict(saved) for name, saved in data["rankings"].items()}
        return Record(**{**data, "rankings": rankings})


def fit_epochs(config: TrainConfig, data: Dataset, seconds: float) -> list[int]:
    """Return the epochs of each stage that take so many seconds together, at least one each.

    The speed of every stage is measured by training it a little, from weights that are thrown away. Stages
    share the time as they share the recipe's epochs; what whole epochs leave of a stage goes to the first.
    """
    epoch_seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for index, stage in enumerate(config.stages):
            model = stage_model(config, data, index, Path(folder))
            endless = replace(stage, epochs=10**6)
            trainer = Trainer(model, data, endless, loss=config.loss, trainer=config.trainer)
            step = _step_seconds(trainer.run, 0.04 * seconds / len(config.stages))
            epoch_seconds.append(step * trainer.steps / endless.epochs)
            model.save(Path(folder) / "stages" / stage.name)
    total = sum(stage.epochs for stage in config.stages)
    epochs: list[int] = []
    for stage, each in list(zip(config.stages, epoch_seconds, strict=True))[:0:-1]:
        epochs.insert(0, max(1, round(seconds * stage.epochs / total / each)))
    left = seconds - sum(n * each for n, each in zip(epochs, epoch_seconds[1:], strict=True))
    return [max(1, round(left / epoch_seconds[0])), *epochs]


def fit_steps(bench: Bench, data: Dataset, seconds: float) -> int:
    """Return the steps of the classifier that take so many seconds, at least one."""
    classifier, loader = _classifier(bench, data, seed=0)
    batches = rivals.repeated(loader)

    def steps(count: int) -> None:
        _train_classifier(classifier, bench, islice(batches, count), count)

    return max(1, round(seconds / _step_seconds(steps, 0.04 * seconds)))


def _step_seconds(steps: Callable[[int], object], seconds: float) -> float:
    """Return the time of a step, by at least five steps and about so many seconds of them."""
    steps(_WARM_UP)
    start, taken = time.monotonic(), 0
    while taken == 0 or time.monotonic() - start < seconds:
        steps(5)
        taken += 5
    return (time.monotonic() - start) / taken


def run_method(config: TrainConfig, title: str, bench: Bench, data: Dataset, folder: Path) -> Record:
    """Train a method in a folder and rank by it."""
    start = time.monotonic()
    trained = train(config, run=folder, progress=False)
    seconds = time.monotonic() - start
    model = trained.model()
    held_out = data.split("valid"), data.split("test")
    means = _class_means(data, embed_split(model, data.split("train")))
    start = time.monotonic()
    test = embed_split(model, held_out[1])
    speed = len(test) / (time.monotonic() - start)
    valid = embed_split(model, held_out[0])

    def ranked(valid: Tensor, test: Tensor, flip: bool) -> dict[str, Ranked]:
        of_valid, of_test = (
            _labelled(split, own, class_estimates(model, split, embed_from(own), means, flip=flip))
            for split, own in zip(held_out, (valid, test), strict=True)
        )
        return class_agreement(of_valid, of_test, data.schema, per_attribute=True)

    every = ranked(valid, test, flip=False)
    if bench.flip:
        mirrored_valid, mirrored_test = (embed_split(model, split, flip=True) for split in held_out)
        by_mirrored = ranked(mirrored_valid, mirrored_test, flip=True)
        every |= {name + MIRRORED: found for name, found in by_mirrored.items()}
    rankings, on_valid, chosen = _figures(every)
    if model.needs_pictures:
        rankings["region weight"] = _by_region_weight(data, valid, test)
    return Record(
        title,
        rankings,
        on_valid,
        seconds,
        trained.steps * bench.batch,
        speed,
        sum(parameter.numel() for parameter in model.parameters()),
        chosen,
    )


def _class_means(data: Dataset, train: Tensor) -> list[Tensor]:
    labels = data.split("train").labels
    rows = np.stack([labels.images(), labels.attribute, labels.value], axis=1)
    return class_means(rows, embed_from(train), data.schema)


def _labelled(split: Split, embeddings: Tensor, probabilities: Mapping[str, Embed]) -> Labelled:
    return Labelled(split.queries, split.candidates, embed_from(embeddings), probabilities)


def _by_region_weight(data: Dataset, valid: Tensor, test: Tensor) -> Result:
    """Rank joint embeddings ``[N, A, 2 E]`` with each attribute's own weight of the region branch."""

    def blocks(split: str, embeddings: Tensor) -> Blocks:
        part = data.split(split)
        region, patch = (embed_from(block) for block in split_joint(embeddings))
        return Blocks(part.queries, part.candidates, region, patch)

    return asfr_joint(blocks("valid", valid), blocks("test", test), data.schema, per_attribute=True)


def run_rivals(bench: Bench, data: Dataset, seed: int, steps: int) -> list[Record]:
    """Rank by the rivals: pixels, the trunk as it is, and a classifier trained for so many steps."""
    generator = torch.Generator().manual_seed(seed)
    trunk = rivals.make_trunk(bench.trunk, bench.trunk_weights, generator)
    size = sum(parameter.numel() for parameter in trunk.parameters())
    start = time.monotonic()
    found = rivals.frozen(trunk, data, "test", _inputs(bench, bench.feature_size))
    seconds = time.monotonic() - start
    speed = found.images_per_second
    return [
        Record("16 x 16 pixels", {"embedding": rivals.pixels(data)}, {}, 0.0, 0, 0.0, 0),
        Record("pooled frozen features", {"embedding": found.pooled}, {}, 0.0, 0, speed, size),
        Record("ridge, 2 x 2 frozen map", {"agreement": found.ridge}, {}, seconds, 0, speed, size),
        _run_classifier(bench, data, seed, steps),
    ]


def _run_classifier(bench: Bench, data: Dataset, seed: int, steps: int) -> Record:
    classifier, loader = _classifier(bench, data, seed)
    start = time.monotonic()
    _train_classifier(classifier, bench, rivals.repeated(loader), steps)
    seconds = time.monotonic() - start
    inputs = _inputs(bench, bench.size)

    def embedded(name: str, flip: bool) -> Labelled:
        split = data.split(name)
        found = rivals.classified(classifier, split, inputs, flip=flip)
        return _labelled(split, found.embeddings, {"classifier": embed_from(found.probabilities)})

    start = time.monotonic()
    embedded("test", False)
    speed = len(data.split("test")) / (time.monotonic() - start)
    every: dict[str, Ranked] = {}
    for ending, flip in [("", False), (MIRRORED, True)][: 2 if bench.flip else 1]:
        splits = embedded("valid", flip), embedded("test", flip)
        ranked = class_agreement(*splits, data.schema, per_attribute=True)
        every |= {name + ending: found for name, found in ranked.items()}
    size = sum(parameter.numel() for parameter in classifier.parameters())
    tests, valids, chosen = _figures(every)
    return Record("plain classifier", tests, valids, seconds, steps * bench.batch, speed, size, chosen)


def _figures(
    ranked: Mapping[str, Ranked],
) -> tuple[dict[str, Result], dict[str, float], dict[str, dict[str, str]]]:
    """Return the results on "test", the overall figures on "valid", and the class probabilities chosen."""
    tests = {name: found.test for name, found in ranked.items()}
    on_valid = {name: found.valid.overall for name, found in ranked.items()}
    return tests, on_valid, {name: dict(found.chosen) for name, found in ranked.items() if found.chosen}


def _classifier(bench: Bench, data: Dataset, seed: int) -> tuple[baselines.MultiHeadClassifier, Loader]:
    torch.manual_seed(seed)
    trunk = rivals.make_trunk(bench.trunk, bench.trunk_weights, torch.default_generator)
    loader = Loader(
        data.split("train"),
        batch=bench.batch,
        preprocess=_inputs(bench, bench.size),
        augment=Augment(flip=bench.flip, crop_scale=bench.crop_scale),
        seed=seed,
    )
    return rivals.classifier_on(trunk, data), loader


def _train_classifier(
    classifier: baselines.MultiHeadClassifier,
    bench: Bench,
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
) -> None:
    baselines.train_classifier(
        classifier,
        batches,
        steps=steps,
        trunk_lr=bench.rate * bench.trunk_rate,
        head_lr=bench.rate,
        freeze_batch_norm=bench.batch_norm == "frozen",
        frozen=bench.frozen,
    )


def _inputs(bench: Bench, size: int) -> Preprocess:
    """Return how images become inputs: as for the methods."""
    mean, std = _C.trunk_normalization(bench.trunk)
    return Preprocess(size=size, fit=bench.fit, box_margin=0.1, mean=mean, std=std)
