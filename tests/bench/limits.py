"""What holds class agreement back on photographs: how much more images would give, and who errs where.

    python tests/bench/limits.py --out DIR

Trains M3-Net by our recipe and the rivals as ``make scores SETTING=photographs`` does, on all training
images of deepfashion-fine6 and on the first half of them, for the same time; and compares the classes that
M3-Nets of two seeds give to the test images. Prints tables and writes DIR/limits.json. Trainings are kept
in DIR, and a call that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from photographs import folder
from torch import Tensor

import placket
from placket.data import Dataset
from placket.evaluate import classify_split
from placket.protocols import Result, asfr_map_all
from placket.runs import write_json
from placket.scores import Scores
from placket.scores import run as run_scores
from placket.scores.settings import SETTINGS, Setting
from placket.tables import render

NAME, METHOD = "deepfashion-fine6", "m3net-ours"
SHARES = {"all": 1.0, "half": 0.5}
SEEDS = {"all": 2, "half": 1}


def first_images(data: Dataset, share: float, place: Path) -> Path:
    """Write a set with the first of the training images alone, and the other splits as they are."""
    count = round(share * len(data.split("train")))
    beside = place.with_name(place.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for file in data.root.iterdir():
        if file.stem.endswith("_train"):
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            (beside / file.name).write_text("".join(lines[:count]), encoding="utf-8")
        else:
            (beside / file.name).symlink_to(file.resolve())
    beside.rename(place)
    return place


def learning(found: dict[str, Scores]) -> list[dict[str, Any]]:
    """Return MAP of what learned from each share of the images."""
    return [
        {
            "training images": share,
            "": row.title,
            **{name: row.cells()[name] for name in row.rankings if not name.startswith("both")},
            "seeds": len(row.by_seed["agreement"]),
        }
        for share, scores in found.items()
        for row in scores.data[0].rows
        if "agreement" in row.rankings
    ]


def errors(classes: Sequence[Sequence[np.ndarray]], data: Dataset) -> list[dict[str, Any]]:
    """Return, by attribute and in per cent of the labels, where two models are right and err alike."""
    labels = data.split("test").labels
    images, attribute, value = labels.images(), labels.attribute, labels.value
    rows = []
    for number, name in enumerate(data.schema.names):
        own = attribute == number
        first, second = (found[number][images[own]] for found in classes)
        right = [found == value[own] for found in (first, second)]
        wrong = ~right[0] & ~right[1]
        shares = {
            "right": (right[0].mean() + right[1].mean()) / 2,
            "the same class": (first == second).mean(),
            "both wrong": wrong.mean(),
            "and by the same class": (wrong & (first == second)).mean(),
        }
        rows.append({"attribute": name} | {key: 100 * float(share) for key, share in shares.items()})
    return rows


def agreement(probabilities: Sequence[Tensor], data: Dataset) -> Result:
    """Rank the test split by the agreement of class probabilities, ``[N, values]`` for each attribute."""

    def embed(images: np.ndarray, attribute: int) -> Tensor:
        return probabilities[attribute][torch.from_numpy(images)]

    split = data.split("test")
    return asfr_map_all(split.queries, split.candidates, embed, data.schema, similarity="dot")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2, help="of torch; one where others use the cores")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    data = placket.data.open(folder(NAME))
    (bench,) = SETTINGS["photographs"].benches
    found = {}
    for name, share in SHARES.items():
        place = asked.out / f"{NAME}-{name}"
        root = data.root if share == 1 else place if place.exists() else first_images(data, share, place)
        setting = Setting((bench,), seeds=SEEDS[name], paper_seeds=0)
        found[name] = run_scores(asked.out / name, setting, data=root, methods=[METHOD], say=print)
    saved = {"learning": learning(found)}
    print(render(saved["learning"], note=f"MAP, test split, {bench.seconds:g} seconds each"), end="\n\n")

    runs = [asked.out / "all" / bench.name / f"{METHOD}-{seed}" / "best" for seed in range(SEEDS["all"])]
    each = [classify_split(placket.load(run), data.split("test"), flip=True) for run in runs]
    classes = [[probabilities.argmax(1).numpy() for probabilities in own] for own in each]
    saved["errors"] = errors(classes, data)
    note = "per cent of the test labels, two M3-Nets of different seeds, with mirror images"
    print(render(saved["errors"], digits=1, note=note), end="\n\n")

    means = [sum(own) / len(own) for own in zip(*each, strict=True)]
    rankings = {"first seed": each[0], "second seed": each[1], "mean of both": means}
    ranked = {name: agreement(own, data) for name, own in rankings.items()}
    saved["together"] = [
        {"class agreement, mirrored": name, "MAP": result.overall, "95 %": result.interval}
        for name, result in ranked.items()
    ]
    print(render(saved["together"], digits=1))
    write_json(asked.out / "limits.json", saved)


if __name__ == "__main__":
    main()
