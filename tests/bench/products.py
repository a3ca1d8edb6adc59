"""Figures of MMFL-Net: photographs of products, with each part of the method switched off in turn.

    python tests/bench/products.py garments --out DIR     generated products, consumers' photos to shops'
    python tests/bench/products.py hm --out DIR           H&M: articles of one product in other colours

H&M holds no street photographs, and so has no row without the cross-domain term. Every row is trained with
the recipe mmfl_lite by the same number of steps, but the plain global network, which is given at least the
time of the whole method, in whole epochs. Prints a table with paired differences and writes DIR/NAME.json;
trainings are kept in DIR, and a call that was stopped goes on from there. Steps are fixed, so that figures do
not depend on load.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from photographs import folder

import placket
from placket.config import TrainConfig, load_config
from placket.data import Dataset, Loader, Preprocess, TableLayout, garments
from placket.data.dataset import SPLITS
from placket.data.table import TableDataset
from placket.nn import MmflNet
from placket.protocols import Photos, Result, c2s_topk, compare, inshop_recall
from placket.rivals import make_trunk
from placket.runs import write_json
from placket.tables import render

TRUNK = "efficientnet_lite0"
WHOLE = "MMFL-Net"
PLAIN = "plain global network, same time"
# What each row changes: options of the model, and losses that it leaves out.
ROWS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    WHOLE: ({}, ()),
    "without fusion": ({"fusion_dim": 0}, ()),
    "without part branch": ({"stripes": ()}, ()),
    "without local branch": ({"local": False}, ()),
    "without cross-domain term": ({}, ("triplet_cross_domain",)),
    "without absolute term": ({}, ("positive_distance",)),
    "without centre loss": ({}, ("centre",)),
    "without attribute head": ({"attributes": False}, ("attribute",)),
    PLAIN: (
        {"fusion_dim": 0, "stripes": (), "local": False, "attributes": False},
        ("triplet_cross_domain", "positive_distance", "centre", "attribute"),
    ),
}
HM = TableLayout(
    table="articles.csv",
    image="images/{article_id:.3}/{article_id}.jpg",
    attributes={"type": "product_type_name", "pattern": "graphical_appearance_name"},
    split="split",
    identity="product_code",
    least_images=20,
)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def opened(name: str, out: Path) -> Dataset:
    if name == "hm":
        return TableDataset(dataclasses.replace(HM, root=str(folder("hm").resolve())))
    root = out / "photographs"
    if not root.exists():
        garments.generate_products(root, products=1000, size=128)
    return placket.data.open(root)


def offered(data: Dataset) -> list[str]:
    """Return the whole method, and the rows that differ from it on a set."""
    losses = load_config("mmfl_lite").stages[0].losses
    whole = losses_of(data, (), losses)
    return [
        name
        for name, (options, left_out) in ROWS.items()
        if name == WHOLE or options or losses_of(data, left_out, losses) != whole
    ]


def losses_of(data: Dataset, left_out: tuple[str, ...], losses: dict[str, float]) -> dict[str, float]:
    """Return a row's losses; the batch-hard triplet loss stands where there is no other domain."""
    kept = {name: weight for name, weight in losses.items() if name not in left_out}
    if data.split("train").domains is None:
        kept.pop("triplet_cross_domain", None)
    return kept if "triplet_cross_domain" in kept else {**kept, "triplet_hard": 1.0}


def config_of(name: str, data: Dataset, epochs: int, seed: int) -> TrainConfig:
    options, left_out = ROWS[name]
    config = load_config("mmfl_lite")
    (stage,) = config.stages
    if (data.root / "meta.json").exists():
        stage = dataclasses.replace(stage, flip=0.0)  # a mirrored garment has its pocket on the wrong side
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **options),
        data=dataclasses.replace(config.data, root=str(data.place)),
        stages=(dataclasses.replace(stage, losses=losses_of(data, left_out, stage.losses), epochs=epochs),),
        trainer=dataclasses.replace(config.trainer, seed=seed, tensorboard=False),
    )


def trainer_of(config: TrainConfig, data: Dataset) -> placket.Trainer:
    from placket.train import stage_model

    model = stage_model(config, data, 0, Path())
    return placket.Trainer(model, data, config.stages[0], loss=config.loss, trainer=config.trainer)


def step_seconds(data: Dataset) -> dict[str, float]:
    """Return the median time of a step of each row, measured in turns so that load meets all alike."""
    trainers = {name: trainer_of(config_of(name, data, 10**3, 0), data) for name in ROWS}
    times: dict[str, list[float]] = {name: [] for name in ROWS}
    for turn in range(6):
        for name, trainer in trainers.items():
            start = time.monotonic()
            trainer.run(1)
            if turn:
                times[name].append(time.monotonic() - start)
    return {name: statistics.median(own) for name, own in times.items()}


def kept(file: Path, make: Any) -> Any:
    if not file.exists():
        write_json(file, make())
    return json.loads(file.read_text(encoding="utf-8"))


def trained(config: TrainConfig, data: Dataset, run: Path) -> MmflNet:
    """Train a configuration, or read what it gave."""
    if not (run / "last").exists():
        trainer = trainer_of(config, data)
        trainer.run()
        trainer.model.save(run / "last")
    model = placket.load(run / "last")
    assert isinstance(model, MmflNet)
    return model


def frozen(data: Dataset, split: str, protocol: str) -> Result:
    """Rank by the pooled map of the ImageNet trunk as it is."""
    trunk = make_trunk(TRUNK, TRUNK, torch.Generator()).eval()
    part = data.split(split)
    settings = Preprocess(size=224, fit="pad", box_margin=0.1, mean=trunk.mean, std=trunk.std)
    loader = Loader(part, batch=64, shuffle=False, drop_last=False, preprocess=settings)
    with torch.inference_mode():
        rows = torch.cat([F.normalize(trunk(batch.images).mean((2, 3)), dim=1) for batch in loader])
    asked = [images.astype("int64") for images in (part.query_images, part.gallery_images)]
    # Numbered as placket.evaluate does, so that results can be compared.
    lists = [Photos(images + (SPLITS.index(split) << 32), part.identities[images]) for images in asked]
    given = (*lists, *(rows[torch.from_numpy(images)] for images in asked))
    if protocol == "inshop-recall/v1":
        return inshop_recall(*given)
    return c2s_topk(*given, gallery_kind="per-subset")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", choices=("garments", "hm"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), help="all by default")
    parser.add_argument("--threads", type=int, default=2, help="of torch; one where others use the cores")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    out = asked.out / asked.set
    out.mkdir(parents=True, exist_ok=True)
    data = opened(asked.set, asked.out)
    protocol = "inshop-recall/v1" if asked.set == "hm" else "c2s-topk/v1"
    options: dict[str, Any] = {} if asked.set == "hm" else {"gallery": "per-subset"}
    seconds = kept(out / "seconds.json", lambda: step_seconds(data))
    results: dict[str, list[Result]] = {"pooled ImageNet features": [frozen(data, "test", protocol)]}
    sizes: dict[str, tuple[int, int]] = {}
    extra: dict[str, Result] = {}
    for name in (name for name in offered(data) if name == WHOLE or name in asked.rows):
        epochs = asked.epochs if name != PLAIN else math.ceil(asked.epochs * seconds[WHOLE] / seconds[PLAIN])
        for seed in range(asked.seeds):
            say(f"{asked.set}: {name}, {epochs} epochs, seed {seed}")
            run = out / f"{name.replace(' ', '-').replace(',', '')}-{epochs}-{seed}"
            model = trained(config_of(name, data, epochs, seed), data, run)
            results.setdefault(name, []).append(placket.evaluate(model, data, protocol=protocol, **options))
            sizes[name] = epochs, sum(p.numel() for p in model.parameters())
            if name == WHOLE and seed == 0:
                extra["MMFL-Net, mirrored"] = placket.evaluate(
                    model, data, protocol=protocol, flip=True, **options
                )
                extra["MMFL-Net, k-reciprocal"] = placket.evaluate(
                    model, data, protocol=protocol, rerank="k-reciprocal", **options
                )
    metrics = list(results[WHOLE][0].metrics)
    whole = results[WHOLE][0]
    everything = {**results, **{name: [result] for name, result in extra.items()}}
    table = []
    for name, found in everything.items():
        row: dict[str, Any] = {"": name}
        for metric in metrics:
            row[metric] = statistics.mean(result.metrics[metric].overall for result in found)
        row["mAP, 95 %"] = found[0].metrics["mAP"].interval
        if name != WHOLE:
            difference = compare(whole, found[0]).metrics["mAP"]
            row |= {
                "mAP more": difference.difference,
                "95 %": difference.interval,
                "p": f"{difference.p_value:.4f}",
            }
        if name in sizes:
            row |= {"epochs": sizes[name][0], "parameters": sizes[name][1]}
            row["step, ms"] = round(1000 * seconds[name])
        table.append(row)
    columns = list(dict.fromkeys(key for row in table for key in row))
    note = f"mAP more: than {WHOLE}'s, paired over queries"
    print(render(table, columns, digits=1, note=note))
    write_json(
        asked.out / f"{asked.set}.json",
        {
            "set": asked.set,
            "epochs": asked.epochs,
            "step_seconds": seconds,
            "rows": {name: [result.to_dict() for result in found] for name, found in everything.items()},
            "table": table,
        },
    )


if __name__ == "__main__":
    main()
