"""An epoch's plan: 100,000 triplets of FashionAI's labels in steps of 16, against the published ways.

They are written afresh in Python. ASEN's draws images until one has the value wanted or, as a negative, until
one has not; RPF's draws two values and then images of them. Both then look the labels up. The distributions
are equal, so counts are what is compared. Instructions are counted by valgrind's callgrind, where there is
one, since virtual machines often hide the processor's counters.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from paired import Record, compare
from photographs import folder

import placket.data
from placket import _C
from placket.data import Labels

TRIPLETS, BATCH, COUNTED_TRIPLETS = 100_000, 16, 10_000
Ints = NDArray[np.int64]
Steps = list[tuple[Ints, Ints, Ints]]  # images, attributes, values, each [3 * BATCH]
Plan = Callable[[], Steps]
Triplet = tuple[int, int, int, int]  # attribute, anchor, positive, negative


class Published:
    """The published samplers on lists and dictionaries."""

    def __init__(self, labels: Labels) -> None:
        self.value_of: list[dict[int, int]] = [dict(labels[image]) for image in range(len(labels))]
        self.images: list[list[int]] = [[] for _ in labels.values]
        self.classes: list[list[list[int]]] = [[[] for _ in range(count)] for count in labels.values]
        for image, values in enumerate(self.value_of):
            for attribute, value in values.items():
                self.images[attribute].append(image)
                self.classes[attribute][value].append(image)

    def by_rejection(self) -> Triplet:
        """ASEN: a negative is uniform over the images of all other values."""
        attribute = random.randrange(len(self.images))
        value = random.randrange(len(self.classes[attribute]))
        anchor = self.draw(attribute, value, wanted=True)
        positive = anchor
        while positive == anchor:
            positive = self.draw(attribute, value, wanted=True)
        return attribute, anchor, positive, self.draw(attribute, value, wanted=False)

    def draw(self, attribute: int, value: int, wanted: bool) -> int:
        while True:
            image = random.choice(self.images[attribute])
            if (self.value_of[image][attribute] == value) == wanted:
                return image

    def by_value(self) -> Triplet:
        """ASEN++ and RPF: the value of a negative is uniform."""
        attribute = random.choices(range(len(self.classes)))[0]
        own, other = random.sample(self.classes[attribute], 2)
        anchor, positive = random.sample(own, 2)
        return attribute, anchor, positive, random.choice(other)

    def epoch(self, draw: Callable[[], Triplet], triplets: int) -> Steps:
        return [self.step(draw) for _ in range(triplets // BATCH)]

    def step(self, draw: Callable[[], Triplet]) -> tuple[Ints, Ints, Ints]:
        attributes, *columns = zip(*(draw() for _ in range(BATCH)), strict=True)
        images = [image for column in columns for image in column]
        values = [self.value_of[image][a] for image, a in zip(images, attributes * 3, strict=True)]
        return np.array(images), np.array(attributes * 3), np.array(values)


def planned(labels: Labels, negative_by_value: bool, triplets: int) -> Plan:
    """Return what plans our next epoch."""
    source = _C.triplet_source(
        labels.to_native(), batch=BATCH, triplets=triplets, negative_by_value=negative_by_value
    )
    steps = source.steps_per_epoch
    epochs = itertools.count()

    def run() -> Steps:
        first = next(epochs) * steps
        plans = (source.plan(step) for step in range(first, first + steps))
        return [(plan.images, plan.attributes, plan.values) for plan in plans]

    return run


def check_counts(published: Published, ours: Steps, theirs: Steps) -> None:
    """Each attribute's values come as often in either plan, to six deviations, as anchor and as negative."""
    most = max(len(classes) for classes in published.classes)
    tables = []
    for steps in (ours, theirs):
        images, attributes, values = (
            np.stack(column).reshape(-1, 3, BATCH) for column in zip(*steps, strict=True)
        )
        assert all(
            published.value_of[image][a] == v
            for image, a, v in zip(images.flat, attributes.flat, values.flat, strict=True)
        )
        assert (values[:, 0] == values[:, 1]).all()
        assert (values[:, 0] != values[:, 2]).all()
        assert (images[:, 0] != images[:, 1]).all()
        number, size = attributes * most + values, len(published.classes) * most
        tables.append(np.stack([np.bincount(number[:, role].ravel(), minlength=size) for role in (0, 2)]))
    a, b = tables
    assert a.sum() == b.sum()
    assert (np.abs(a - b) <= 6 * np.sqrt(a + b)).all()


def fashion_ai() -> Labels:
    return placket.data.open(folder("asfr-splits/FashionAI")).split("train").labels


def arms(published: Published, labels: Labels, triplets: int) -> dict[str, tuple[Plan, Plan]]:
    """Return ours and theirs by the published sampler's name."""
    return {
        "ASEN": (planned(labels, False, triplets), lambda: published.epoch(published.by_rejection, triplets)),
        "RPF": (planned(labels, True, triplets), lambda: published.epoch(published.by_value, triplets)),
    }


def count_instructions(name: str, arm: int) -> int:
    """Return the instructions of one arm for COUNTED_TRIPLETS, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        tool = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
        subprocess.run([*tool, sys.executable, __file__, name, str(arm)], check=True, capture_output=True)
        return int(re.findall(r"^totals: (\d+)$", out.read_text(), re.MULTILINE)[-1])


def run_counted(name: str, arm: int) -> None:
    """Run one arm under callgrind, whose counting is on for that alone."""
    labels = fashion_ai()
    plan = arms(Published(labels), labels, COUNTED_TRIPLETS)[name][arm]
    switch = ["callgrind_control", str(os.getpid()), "-i"]
    subprocess.run([*switch, "on"], check=True, capture_output=True)
    plan()
    subprocess.run([*switch, "off"], check=True, capture_output=True)


def run() -> list[Record]:
    labels = fashion_ai()
    published = Published(labels)
    records = []
    for name, (ours, theirs) in arms(published, labels, TRIPLETS).items():
        check_counts(published, ours(), theirs())
        record = compare(f"{TRIPLETS} triplets by {name}'s rule", ours, {name: theirs})
        if shutil.which("valgrind") is not None:
            own, other = (count_instructions(name, arm) / COUNTED_TRIPLETS for arm in (0, 1))
            record["instructions_per_triplet"] = {"ours": own, name: other}
            print(
                f"instructions a triplet: ours {own:.0f}, {name} {other:.0f}, {other / own:.1f}x", flush=True
            )
        records.append(record)
    return records


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run_counted(sys.argv[1], int(sys.argv[2]))
    else:
        run()
