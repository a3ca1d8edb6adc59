"""Figures of the models with words: names of garments, composed queries, values known by words alone.

    python tests/bench/words.py parsing --out DIR     Clothing Co-Parsing: names of real regions
    python tests/bench/words.py composed --out DIR    H&M: "replace A with B", by composition
    python tests/bench/words.py unseen --out DIR      generated garments: values that training never saw

Each prints a table and writes DIR/NAME.json. What takes long, trainings and features, is kept in DIR, and a
call that was stopped goes on from there. Numbers of steps are fixed, so that figures do not depend on load.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from photographs import folder
from torch import Tensor, nn

import placket
from placket import AttributeSchema, baselines
from placket.composed import CachedFeatures, compose_queries, masked_cross_entropy
from placket.config import TrainConfig, load_config
from placket.data import Dataset, Loader, Preprocess, Split, garments
from placket.data.compositions import joined_captions
from placket.nn import Clip, Composition
from placket.protocols import (
    Result,
    attention_peaks,
    bootstrap_interval,
    composed_recall,
    input_window,
    pointing,
    recognition,
    recognition_targets,
)
from placket.rivals import make_trunk
from placket.runs import write_json
from placket.tables import render
from placket.text import Tokenizer
from placket.words import score_values

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
    maps["both"] = {
        name: torch.cat([maps[v][name] for v in ("crop", "segmented")], 1) for name in data.splits
    }
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


# Composed queries of H&M

HM = """
table: articles.csv
root: {root}
image: images/{{article_id:.3}}/{{article_id}}.jpg
attributes: {{colour: colour_group_name}}
split: split
identity: product_code
compositions: {{attribute: colour}}
"""
DIMS = 256
# Each with the rate, and the width or dropout, best on valid of some eight tries for AGCN and four for a
# rival. By seed 0 there: AGCN with dropout 0.1 87.8, with 0.3 88.3 after 400 steps; Combiner with half its
# usual widths 85.4; a rate of 1e-3 86.8 for AGCN and 85.9 for the Combiner, of 2e-3 84.5 for TIRG.
COMPOSITIONS = {
    "AGCN": ("agcn,layers=1,heads=4,hidden=1024,dropout=0.3", 2e-3),
    "Combiner": ("combiner", 2e-3),
    "TIRG": ("tirg", 1e-3),
    "sum": ("sum", 1e-3),
    "image alone": ("image", 0.0),
    "text alone": ("text", 1e-3),
}
STEPS, BATCH, DECAY, SCALE = 600, 256, 1e-2, 30.0


class Queries(NamedTuple):
    """Composed queries of a split on features of its images."""

    images: CachedFeatures  # of the whole image, with those of its quarters as tokens
    reference: Tensor  # [m]
    text: Tensor  # [m] row of ids
    target: Tensor  # [m]
    groups: Tensor  # [N] the images that answer alike
    ids: Tensor  # [T, L]


class Learner(nn.Module):
    """A composition, and the words that learn with it: there are no pretrained ones here."""

    def __init__(self, name: str, vocabulary: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        # The text tower of a CLIP, whose image tower nothing uses.
        text = f"clip_text,width=128,depth=1,heads=4,embedding_dim={DIMS},context=32,vocabulary={vocabulary}"
        self.clip = Clip(f"resnet18,width=0.125,embedding_dim={DIMS}", text, generator=generator)
        self.composition = Composition(name, DIMS, generator)

    def texts(self, ids: Tensor) -> CachedFeatures:
        out, end = self.clip.text_tokens(ids)
        return CachedFeatures(out.embedding, out.tokens, torch.arange(ids.shape[1]) <= end[:, None])


def hm_features(data: Dataset, name: str, file: Path) -> Tensor:
    """Return, of the whole of each image and of its quarters, a frozen trunk's mean and 8 x 8 pixels."""
    if not file.exists():
        say(f"frozen features of {name}")
        trunk = make_trunk(f"{TRUNK},stage=head", "imagenet", torch.Generator().manual_seed(0)).eval()
        inputs = Preprocess(size=128, fit="pad", mean=trunk.mean, std=trunk.std)
        loader = Loader(data.split(name), batch=64, shuffle=False, drop_last=False, preprocess=inputs)
        parts = []
        with torch.inference_mode():
            for batch in loader:
                maps = F.adaptive_avg_pool2d(trunk(batch.images), 2).half()
                parts.append({"head": maps, "pixels": F.adaptive_avg_pool2d(batch.images, 16).half()})
        torch.save({key: torch.cat([part[key] for part in parts]) for key in ("head", "pixels")}, file)
    saved = torch.load(file)
    maps, pixels = saved["head"].float(), saved["pixels"].float()
    whole = torch.cat([maps.mean((2, 3)), F.adaptive_avg_pool2d(pixels, 8).flatten(1)], 1)
    quarters = [
        torch.cat([maps[:, :, y, x], pixels[:, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].flatten(1)], 1)
        for y in (0, 1)
        for x in (0, 1)
    ]
    return torch.stack([whole, *quarters], 1)


def hm_queries(data: Dataset, out: Path) -> dict[str, Queries]:
    tokenizer = Tokenizer.load(vocabulary())
    features = {name: hm_features(data, name, out / f"hm-128-{name}.pt") for name in data.splits}
    # Standardised, then the DIMS principal components of the training images, each divided by the root of
    # its deviation: between a rotation, in which the largest decide, and whitening, which raises the noise.
    whole = features["train"][:, 0]
    mean, deviation = whole.mean(0), whole.std(0).clamp_min(1e-3)
    standard = ((whole - mean) / deviation).double()
    variance, basis = torch.linalg.eigh(standard.T @ standard / len(standard))
    basis = (basis[:, -DIMS:] / variance[-DIMS:] ** 0.25).float()
    found = {}
    for name in data.splits:
        asked = data.compositions(name)
        assert asked is not None
        assert asked.groups is not None
        texts = joined_captions(asked)
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        images = ((features[name] - mean) / deviation) @ basis
        found[name] = Queries(
            CachedFeatures(images[:, 0], images[:, 1:]),
            torch.from_numpy(asked.reference.astype(np.int64)),
            torch.tensor([rows[text] for text in texts]),
            torch.from_numpy(asked.target.astype(np.int64)),
            torch.from_numpy(asked.groups.astype(np.int64)),
            tokenizer(list(rows), 32),
        )
    # Of the vocabulary's 49,408 words a few dozen occur; their order, by which a text ends, is kept.
    used = torch.cat([queries.ids.flatten() for queries in found.values()]).unique()
    return {
        name: queries._replace(ids=torch.searchsorted(used, cut(queries.ids).contiguous()))
        for name, queries in found.items()
    }


def cut(ids: Tensor) -> Tensor:
    return ids[:, : int((ids != 0).any(0).sum())]


def learn(name: str, train: Queries, words: int, rate: float, seed: int) -> Learner:
    """Train a composition and its words on fixed features of images, for STEPS steps."""
    learner = Learner(name, words, seed)
    if name == "image":
        return learner.eval()
    used = [*learner.clip.text_parameters(), *learner.composition.parameters()]
    optimizer = torch.optim.AdamW(used, weight_decay=DECAY)
    draws = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of dropout
    learner.train()
    device = torch.device("cpu")
    for step in range(STEPS):
        factor = min(1.0, (step + 1) / 50) * (1 + np.cos(np.pi * step / STEPS)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        rows = torch.randint(len(train.target), (BATCH,), generator=draws)
        said, place = train.text[rows].unique(return_inverse=True)
        text, words_of, mask = learner.texts(train.ids[said]).take(place, device)
        image, tokens, _ = train.images.take(train.reference[rows], device)
        query = learner.composition(image, text, tokens, words_of, mask).query
        target = train.target[rows]
        wanted = F.normalize(train.images.embedding[target], dim=1)
        loss = masked_cross_entropy(query, wanted, train.groups[target], SCALE)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return learner.eval()


@torch.no_grad()
def composed_result(learner: Learner, queries: Queries, data: Dataset, split: str) -> Result:
    texts = learner.texts(queries.ids)
    found = compose_queries(learner.composition, queries.images, texts, queries.reference, queries.text)
    asked = data.compositions(split)
    assert asked is not None
    gallery = F.normalize(queries.images.embedding, dim=1)
    return composed_recall(asked, data.split(split), found.query, gallery, reference="kept")


def product_interval(values: np.ndarray, products: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over queries that are drawn product by product."""
    _, place = np.unique(products, return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place)
    drawn = np.random.Generator(np.random.Philox(0)).integers(len(sums), size=(2000, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def composed(out: Path, seeds: int, split: str) -> None:
    place = out / "hm.yaml"
    place.write_text(HM.format(root=folder("hm")))
    data = placket.data.open(place)
    queries = hm_queries(data, out)
    words = 1 + max(int(each.ids.max()) for each in queries.values())
    asked, images = data.compositions(split), data.split(split)
    assert asked is not None
    assert images.identities is not None
    products = images.identities[asked.reference]
    hits: dict[str, dict[str, list[np.ndarray]]] = {}
    saved: dict[str, Any] = {}
    for method, (name, rate) in COMPOSITIONS.items():
        hits[method] = {}
        for seed in range(seeds):
            file = out / f"composed-{split}-{method.replace(' ', '-')}-{seed}.json"
            if file.exists():
                result = Result.load(file)
            else:
                start = time.process_time()
                learner = learn(name, queries["train"], words, rate, seed)
                result = composed_result(learner, queries[split], data, split)
                result.save(file)
                seconds = time.process_time() - start
                say(f"{method}, seed {seed}: {result.overall:.1f}, {seconds:.0f} s of a core")
            for metric, found in result.metrics.items():
                hits[method].setdefault(metric, []).append(100 * found.values["all"])
        for metric, columns in hits[method].items():
            mean = np.mean(columns, axis=0)
            entry = saved.setdefault(method, {})[metric] = {
                "mean": float(mean.mean()),
                "interval over queries": bootstrap_interval(mean),
                "interval over products": product_interval(mean, products),
                "seeds": [float(column.mean()) for column in columns],
            }
            if method != "AGCN":
                better = np.mean(hits["AGCN"][metric], axis=0) - mean
                entry["AGCN minus it"] = float(better.mean())
                entry["of which over queries"] = bootstrap_interval(better)
                entry["of which over products"] = product_interval(better, products)
        print(render(composed_rows(saved), digits=1), flush=True)
        write_json(out / f"composed-{split}.json", {"split": split, "seeds": seeds, "methods": saved})


def composed_rows(saved: Mapping[str, Any]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for method, metrics in saved.items():
        row: dict[str, object] = {"method": method}
        for metric, entry in metrics.items():
            row[metric] = entry["mean"]
            row[f"{metric}, 95 %"] = tuple(entry["interval over queries"])
            row[f"{metric}, AGCN minus it"] = entry.get("AGCN minus it")
            interval = entry.get("of which over products")
            row[f"{metric}, 95 % by products"] = None if interval is None else tuple(interval)
        rows.append(row)
    return rows


# Values known by their words alone

LOOKS = ("pattern", "sleeve")
WITHHELD_PATTERNS = ("striped", "dotted", "checked", "floral")
WITHHELD_SLEEVES = ("short", "long")
PROMPTS = """
language: English
garment: garment
forms: {a: {'[aeiou].*': 'an {}', '.*': 'a {}'}}
words: {}
category: ['{category:a}']
attribute: ['{category:a} with {value} {attribute}', 'a photo of {category:a} with {value} {attribute}']
attributes:
  look: &look ['{category:a} with {value}', 'a photo of {category:a} with {value}']
  further look: *look
replace: ['replace {old} with {new}']
"""


def look(pattern: str, sleeve: str) -> str:
    return f"{pattern} pattern and {sleeve} sleeve"


def is_withheld(pattern: str, sleeve: str) -> bool:
    return pattern in WITHHELD_PATTERNS and sleeve in WITHHELD_SLEEVES


def looks_table(drawn: Dataset, out: Path) -> Path:
    """Write generated garments as a table whose "look" joins two attributes, without those withheld."""
    names = drawn.schema.names
    lines = ["\t".join(["file", "split", *names, "look"])]
    for name in ("train", "valid"):
        for record in drawn.split(name).records:
            said = [record.labels[attribute][0] for attribute in names]
            pair = [record.labels[attribute][0] for attribute in LOOKS]
            if not is_withheld(*pair):
                lines.append("\t".join([record.filename, name, *said, look(*pair)]))
    (out / "looks.tsv").write_text("\n".join(lines) + "\n")
    attributes = ", ".join(f"{name}: {name}" for name in [*names, "look"])
    (out / "looks.yaml").write_text(
        f"table: {out.resolve() / 'looks.tsv'}\nroot: {drawn.root}\nimage: '{{file}}'\nsplit: split\n"
        f"attributes: {{{attributes}}}\n"
    )
    return out / "looks.yaml"


def unseen_config(table: Path, prompts: Path, seed: int) -> TrainConfig:
    """Return a RaF-CLIP on whole pictures of 96 pixels that is trained from nothing."""
    config = load_config("raf_clip_lite")
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model,
            trunk="resnet18,width=0.375,stage=2,embedding_dim=128",
            trunk_weights=None,
            text="clip_text,width=128,depth=2,heads=4,embedding_dim=128,context=32",
            vocabulary=vocabulary(),
            prompts=str(prompts),
            category=None,
            views="crop",
        ),
        data=dataclasses.replace(config.data, root=str(table), regions=False, size=96, box_margin=0.0),
        stages=(
            dataclasses.replace(
                config.stages[0],
                losses={"attribute_text": 1.0},
                rates={"": 1e-3},
                epochs=24,
                batch=32,
                batch_norm="merged",
                flip=0.0,
            ),
        ),
        trainer=dataclasses.replace(config.trainer, seed=seed, checkpoint_every=200),
    )


def look_rows(split: Split) -> list[tuple[str, str]]:
    """Return pattern and sleeve of each image."""
    labels = [record.labels for record in split.records]
    return [(own["pattern"][0], own["sleeve"][0]) for own in labels]


def of_looks(model: placket.nn.RafClip, drawn: Dataset, names: Sequence[str]) -> Result:
    """Recognise the withheld looks of images, among some looks that the model is told of by their words."""
    further = placket.extend(model, {"further look": names})
    assert isinstance(further, placket.nn.RafClip)
    given: dict[str, tuple[Tensor, Any]] = {}
    for name in ("test", "valid"):
        split = drawn.split(name)
        pairs = look_rows(split)
        asked = [row for row, pair in enumerate(pairs) if is_withheld(*pair)]
        scores = score_values(further, split)[asked, -len(names) :]
        targets = np.zeros(scores.shape, dtype=np.int8)
        targets[np.arange(len(asked)), [names.index(look(*pairs[row])) for row in asked]] = 1
        given[name] = scores, targets
    return recognition(*given["test"], *given["valid"], AttributeSchema.of({"look": names}))


def points(model: placket.nn.RafClip, drawn: Dataset) -> dict[str, tuple[float, float]]:
    """Return, by attribute, in per cent how often the position that speaks most for an image's value, beside
    the attribute's other values, lies in the true region, and how often any position does."""
    split, regions = drawn.split("test"), drawn.regions("test")
    assert regions is not None
    boxes: dict[tuple[int, int], list[list[int]]] = {}
    for image, attribute, *box in regions.tolist():
        boxes.setdefault((image, attribute), []).append(box)
    size = model.preprocess["size"]
    loader = Loader(
        split, batch=64, shuffle=False, drop_last=False, preprocess=Preprocess(**model.preprocess)
    )
    inside: dict[str, list[bool]] = {}
    anywhere: dict[str, list[float]] = {}
    first = np.cumsum([0, *model.schema.value_counts])
    done = 0
    with torch.inference_mode():
        for batch in loader:
            maps = model.eval().value_maps(batch.images)
            side = maps.shape[2]
            for row in range(len(maps)):
                labels = dict(split.labels[done + row])
                picture = placket.data.read_image(split.paths[done + row]).shape
                window = input_window(picture[1], picture[0], size=size, fit="pad")
                for a, name in enumerate(drawn.schema.names):
                    if (done + row, a) not in boxes:
                        continue
                    number = model.schema.index(name)
                    value = model.schema[number].index(drawn.schema[a].values[labels[a]])
                    heat = maps[row, first[number] + value]
                    own = boxes[done + row, a]
                    hit = pointing(attention_peaks(heat[None]), [window], [own])
                    inside.setdefault(name, []).append(bool(hit[0]))
                    each = torch.eye(side * side).view(-1, side, side)
                    cells = pointing(attention_peaks(each), [window] * side**2, [own] * side**2)
                    anywhere.setdefault(name, []).append(float(cells.mean()))
            done += len(maps)
    return {
        name: (100 * float(np.mean(inside[name])), 100 * float(np.mean(anywhere[name]))) for name in inside
    }


def unseen(out: Path, seeds: int) -> None:
    root = out / "garments"
    if not root.exists():
        say("drawing garments")
        garments.generate(root, items=3000, size=96, seed=0)
    drawn = placket.data.open(root)
    prompts = out / "prompts.yaml"
    prompts.write_text(PROMPTS)
    table = looks_table(drawn, out)
    known = placket.data.open(table).schema[len(drawn.schema)].values
    withheld = [look(p, s) for p in WITHHELD_PATTERNS for s in WITHHELD_SLEEVES]
    results: dict[str, Result] = {}
    pointed: dict[str, Any] = {}
    for seed in range(seeds):
        say(f"training, seed {seed}")
        model = trained(unseen_config(table, prompts, seed), out / f"unseen-{seed}")
        say("recognising what was withheld")
        every = [*withheld, *known]
        results[f"among the {len(withheld)} withheld, seed {seed}"] = of_looks(model, drawn, withheld)
        results[f"among all {len(every)}, seed {seed}"] = of_looks(model, drawn, every)
        pointed[f"seed {seed}"] = points(model, drawn)
        show("unseen", results, out, pointing=pointed)
        rows = [
            {"seed": s, "attribute": a, "%": p, "any position": c}
            for s, f in pointed.items()
            for a, (p, c) in f.items()
        ]
        print(render(rows), flush=True)


def show(name: str, results: Mapping[str, Result], out: Path, **more: Any) -> None:
    """Print the figures of results, and write them."""
    rows: list[dict[str, object]] = []
    before: dict[str, str] = {}
    for method, result in results.items():
        chance = {metric: f"{found.floor_overall:.1f}" for metric, found in result.metrics.items()}
        if chance != before:
            rows.append({"method": "chance", **chance})
        before = chance
        row: dict[str, object] = {"method": method}
        for metric, found in result.metrics.items():
            low, high = found.interval
            row[metric] = f"{found.overall:.1f} ({low:.1f} - {high:.1f})"
        rows.append(row)
    print(render(rows), flush=True)
    write_json(out / f"{name}.json", {**more, "results": {k: r.to_dict() for k, r in results.items()}})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", choices=("parsing", "composed", "unseen"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="of composed")
    parser.add_argument("--seeds", type=int, default=3, help="of composed and unseen")
    parser.add_argument("--threads", type=int, default=2, help="of torch; one where others use the cores")
    parser.add_argument("--epochs", type=int, default=10, help="of parsing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    if options.which == "parsing":
        parsing(options.out, options.epochs)
    if options.which == "composed":
        composed(options.out, options.seeds, options.split)
    if options.which == "unseen":
        unseen(options.out, options.seeds)


if __name__ == "__main__":
    main()
