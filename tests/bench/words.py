"""Figures of the models with words: garment names of regions, composed queries, and values known by words alone.

    python tests/bench/words.py parsing --out DIR     Clothing Co-Parsing: names of real regions
    python tests/bench/words.py composed --out DIR    H&M: "replace A with B", by composition
    python tests/bench/words.py unseen --out DIR      generated garments: values that training never saw

Each prints a table and writes DIR/NAME.json. What takes long, trainings and features, is kept in DIR, and a
call that was stopped goes on from there. Numbers of steps are fixed, so that figures do not depend on load.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from photographs import folder
from torch import Tensor

import placket
from placket import baselines
from placket.config import TrainConfig, load_config
from placket.data import Dataset, Loader, Preprocess, Split
from placket.protocols import Result, compare, recognition, recognition_targets
from placket.rivals import make_trunk
from placket.runs import write_json
from placket.tables import render

TRUNK = "efficientnet_lite0"


def vocabulary() -> str:
    return str(folder("clip") / "bpe_simple_vocab_16e6.txt.gz")


def trained(config: TrainConfig, run: Path) -> placket.nn.RafClip:
    """Train a configuration, or go on with its run, or read what it gave."""
    if not (run / "result.json").exists():
        placket.train(config, run=run, resume=(run / "config.yaml").exists(), progress=False)
    model = placket.load(run / "best")
    assert isinstance(model, placket.nn.RafClip)
    return model


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# Clothing Co-Parsing


def parsing_config(views: str, epochs: int) -> TrainConfig:
    """Return raf_clip_lite.yaml for Clothing Co-Parsing with some views."""
    config = load_config("raf_clip_lite")
    losses = {"category_text": 1.0} | ({"view_agreement": 0.1} if views == "both" else {})
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, vocabulary=vocabulary(), views=views),
        data=dataclasses.replace(config.data, root=str(folder("co-parsing"))),
        stages=(dataclasses.replace(config.stages[0], losses=losses, epochs=epochs),),
        trainer=dataclasses.replace(config.trainer, checkpoint_every=50),
    )


def region_maps(split: Split, views: str) -> Tensor:
    """Return maps ``[N, C, 2, 2]`` of a frozen trunk for the views of regions, channels side by side."""
    trunk = make_trunk(TRUNK, "imagenet", torch.Generator().manual_seed(0)).eval()
    inputs = Preprocess(size=224, fit="pad", box_margin=0.1, mean=trunk.mean, std=trunk.std)
    loader = Loader(split, batch=64, shuffle=False, drop_last=False, preprocess=inputs, views=views)
    with torch.inference_mode():
        return torch.cat([F.adaptive_avg_pool2d(trunk(batch.images), 2) for batch in loader])


def ridge(data: Dataset, maps: Mapping[str, Tensor]) -> Result:
    """Evaluate ridge regression of the names on frozen maps; its strength is best on valid by mAP."""
    splits = {name: data.region_split(name) for name in data.splits}
    targets = {name: recognition_targets(split.labels) for name, split in splits.items() if split is not None}
    labels = torch.from_numpy(targets["train"].argmax(1))[:, None]

    width = targets["train"].shape[1]

    def by_map(scores: Tensor) -> list[float]:
        valid = F.pad(scores[:, 0], (0, width - scores.shape[2])), targets["valid"]
        return [recognition(*valid, *valid, data.schema).metrics["mAP"].overall]

    # Both splits through one call, the second to choose thresholds on.
    joined = torch.cat([maps["test"], maps["valid"]])
    found = baselines.ridge(maps["train"], labels, maps["valid"], joined, by_map).embeddings[:, 0]
    found = F.pad(found, (0, width - found.shape[1]))
    count = len(maps["test"])
    return recognition(found[:count], targets["test"], found[count:], targets["valid"], data.schema)


def parsing(out: Path, epochs: int) -> None:
    data = placket.data.open(folder("co-parsing"))
    results: dict[str, Result] = {}
    maps: dict[str, dict[str, Tensor]] = {}
    for views in ("crop", "segmented"):
        file = out / f"maps-{views}.pt"
        if not file.exists():
            say(f"frozen features, {views}")
            torch.save({name: region_maps(data.region_split(name), views) for name in data.splits}, file)
        maps[views] = torch.load(file)
    maps["both"] = {name: torch.cat([maps[v][name] for v in ("crop", "segmented")], 1) for name in data.splits}
    for views, own in maps.items():
        say(f"ridge, {views}")
        results[f"ridge on frozen features, {views}"] = ridge(data, own)
        show("parsing", results, out)
    for views in ("both", "crop", "segmented"):
        say(f"RaF-CLIP, {views}, {epochs} epochs")
        start = time.process_time()
        model = trained(parsing_config(views, epochs), out / f"parsing-{views}")
        say(f"{time.process_time() - start:.0f} s of processor time")
        results[f"RaF-CLIP, {views}"] = placket.evaluate(model, data, "test", "recognition/v1", regions=True)
        show("parsing", results, out)


def show(name: str, results: Mapping[str, Result], out: Path, **more: Any) -> None:
    """Print the figures of results, and write them."""
    first = next(iter(results.values()))
    rows: list[dict[str, object]] = []
    for method, result in results.items():
        row: dict[str, object] = {"method": method}
        for metric, found in result.metrics.items():
            low, high = found.interval
            row[metric] = f"{found.overall:.1f} ({low:.1f} - {high:.1f})"
        rows.append(row)
    floors = {metric: f"{found.floor_overall:.1f}" for metric, found in first.metrics.items() if found.floor}
    if floors:
        rows.append({"method": "chance", **floors})
    print(render(rows), flush=True)
    write_json(out / f"{name}.json", {**more, "results": {k: r.to_dict() for k, r in results.items()}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("parsing", "composed", "unseen"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10, help="of parsing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    if options.which == "parsing":
        parsing(options.out, options.epochs)


if __name__ == "__main__":
    main()
