"""The demonstration: draw garments, train RPF on them, evaluate, index, search, and show it on one page."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from placket import _C, report, rivals
from placket.config import TrainConfig, load_config
from placket.data import Dataset, Loader, Preprocess, Split, garments, read_image
from placket.data import open as open_data
from placket.evaluate import evaluate
from placket.explain import look
from placket.index import AttributeIndex, Hit, build
from placket.models import as_network
from placket.nn import AttributeNetwork
from placket.protocols import Result, attention_peaks, pointing
from placket.runs import RunFolder, write_json
from placket.train import train

__all__ = ["DemoResult", "attention_maps", "evaluate_pointing", "run"]

RESULT = "demo.json"


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration found on the test split.

    Attributes:
        stages: result of each stage's best model by the stage's name, in order.
        pixels: the same of 16 x 16 pixels.
        pointing: share of attention maxima inside the attribute's true region, in per cent, by attribute;
            those that have a place.
        pointing_overall: the same over all of them.
        seconds: of the whole demonstration.
        page: the report.
    """

    stages: dict[str, Result]
    pixels: Result
    pointing: dict[str, float]
    pointing_overall: float
    seconds: float
    page: Path


def run(
    out: str | os.PathLike[str],
    seed: int = 0,
    *,
    items: int = 2400,
    config: TrainConfig | None = None,
    progress: bool | None = None,
) -> DemoResult:
    """Run the demonstration in a folder; what an earlier one left there is replaced.

    Args:
        out: holds ``garments/``, ``run/``, ``index/``, ``demo.json`` and ``report.html`` afterwards.
        seed: of garments and training.
        items: images to draw.
        config: of the training; the shipped ``demo.yaml`` by default. Data and seed are set here.
        progress: as in ``placket.train``.

    Raises:
        FileExistsError: the folder holds something that is no demonstration.
    """
    start = time.monotonic()
    folder = Path(out)
    _clear(folder)

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:5.0f} s] {text}", file=sys.stderr, flush=True)

    say(f"drawing {items} garments into {folder / 'garments'}")
    garments.generate(folder / "garments", items=items, seed=seed)
    data = open_data(folder / "garments")
    config = config or load_config("demo")
    config = replace(
        config, data=replace(config.data, root=str(data.root)), trainer=replace(config.trainer, seed=seed)
    )
    say(f"training {len(config.stages)} stages on {len(data.split('train'))} images")
    trained = train(config, run=folder / "run", progress=progress)
    models = {stage.name: trained.model(stage.name) for stage in config.stages}

    stages = {}
    for name, model in models.items():
        stages[name] = evaluate(model, data, "test")
        say(f"stage '{name}': test MAP {stages[name].overall:.1f}, chance {stages[name].floor_overall:.1f}")
    pixels = rivals.pixels(data, "test")
    say(f"16 x 16 pixels: test MAP {pixels.overall:.1f}")
    final = as_network(models[config.stages[-1].name], "demo")
    test = data.split("test")
    attention = attention_maps(final, test)
    points, overall = evaluate_pointing(final, data, "test", attention)
    say(f"attention maxima inside the true region: {overall:.1f} %")

    index = build(final, test, folder / "index", images=np.unique(test.candidates[:, 0]))
    page = folder / "report.html"
    named = {f"RPF, stage '{name}'": result for name, result in stages.items()}
    rows = rivals.rows({**named, "16 x 16 pixels": pixels})
    _write_page(page, folder / "run", rows, points, overall, final, data, index)
    seconds = time.monotonic() - start
    result = DemoResult(stages, pixels, points, overall, seconds, page)
    write_json(
        folder / RESULT,
        {
            "stages": {name: r.to_dict() for name, r in stages.items()},
            "pixels": pixels.to_dict(),
            "pointing": {**points, "overall": overall},
            "seconds": seconds,
        },
    )
    print(report.table_text(rows))
    print(f"attention maxima inside the true region: {overall:.1f} %")
    say(f"open {page}")
    return result


@torch.inference_mode()
def attention_maps(model: AttributeNetwork, split: Split) -> torch.Tensor:
    """Return the region branch's attention ``[N, A, h, w]`` of every image under every attribute."""
    loader = Loader(
        split, batch=64, shuffle=False, drop_last=False, preprocess=Preprocess(**model.preprocess)
    )
    every = torch.arange(len(model.schema))
    parts = [
        model(batch.images, every.expand(len(batch.images), -1), patch=False).attention for batch in loader
    ]
    return torch.cat(parts)


def evaluate_pointing(
    model: AttributeNetwork, data: Dataset, split: str, attention: torch.Tensor
) -> tuple[dict[str, float], float]:
    """Return how often attention is greatest inside the attribute's true region.

    Args:
        model: whose attention it is.
        data: generated garments.
        split: whose images they are.
        attention: ``[N, A, h, w]`` of ``attention_maps``.

    Returns:
        per cent for each attribute that has a place, and over all of them.
    """
    part, regions = data.split(split), data.regions(split)
    if regions is None:
        raise ValueError(f"evaluate_pointing: data must have true regions, got {data.root} without")
    preprocess = Preprocess(**model.preprocess)
    sizes = [read_image(path).shape[:2] for path in part.paths]
    places = [None] * len(part) if part.boxes is None else part.boxes.tolist()
    windows = [
        _C.frame(height, width, box, preprocess)[1]
        for (height, width), box in zip(sizes, places, strict=True)
    ]
    inside: dict[str, NDArray[np.bool_]] = {}
    for name in garments.LOCAL:
        attribute = data.schema.index(name)
        own = regions[regions[:, 1] == attribute]
        boxes = [own[own[:, 0] == image, 2:] for image in range(len(part))]
        inside[name] = pointing(attention_peaks(attention[:, attribute]), windows, boxes)
    shares = {name: 100 * float(hit.mean()) for name, hit in inside.items()}
    return shares, 100 * float(np.concatenate(list(inside.values())).mean())


def _clear(folder: Path) -> None:
    """Make room for a demonstration."""
    known = {"garments", "garments.partial", "run", "index", "report.html", RESULT}
    if folder.exists() and (strange := sorted({path.name for path in folder.iterdir()} - known)):
        raise FileExistsError(
            f"demo: out must be a new folder or that of an earlier demonstration, "
            f"got {folder} with {strange[0]}"
        )
    for name in ("run", "index"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def _write_page(
    page: Path,
    run_folder: Path,
    rows: Sequence[dict[str, object]],
    points: dict[str, float],
    overall: float,
    model: AttributeNetwork,
    data: Dataset,
    index: AttributeIndex,
) -> None:
    metrics = RunFolder(run_folder).read_metrics()
    losses = sorted({name for record in metrics for name in record.get("losses", {})})
    loss_curves = {
        name: [(r["step"], r["losses"][name]) for r in metrics if name in r.get("losses", {})]
        for name in losses
    }
    map_curve = report.metric_curves(metrics, ["overall"])
    place = [{"attribute": name, "inside": share} for name, share in points.items()]
    place.append({"attribute": "all", "inside": overall})
    sections = [
        report.Section(
            "Scores",
            "Mean average precision in per cent over candidate lists (asfr-map-all/v1) of the test split.",
            report.table_html(rows),
        ),
        report.Section(
            "Training",
            "Evaluated on the validation split during training.",
            report.curves_svg({"MAP": map_curve["overall"]}, "MAP on the validation split, per cent")
            + report.curves_svg(loss_curves, "losses"),
        ),
        report.Section(
            "Where the model looks",
            "Share of the test images whose attention is greatest inside the attribute's true region.",
            report.table_html(place, {"attribute": "attribute", "inside": "inside, %"}),
        ),
    ]
    sections += [_gallery(name, model, data, index) for name in data.schema.names]
    report.write_report(page, "From region to patch: RPF on generated garments", sections)


def _gallery(
    name: str, model: AttributeNetwork, data: Dataset, index: AttributeIndex, queries: int = 3
) -> report.Section:
    """Some queries of an attribute: attention, box, crop, and the first ten hits."""
    test, attribute = data.split("test"), data.schema.index(name)
    rows = test.queries[test.queries[:, 1] == attribute]
    regions = data.regions("test")
    galleries = []
    for image, _, value in rows[np.linspace(0, len(rows) - 1, queries).astype(int)].tolist():
        seen = look(model, test.paths[image], [name], box=None if test.boxes is None else test.boxes[image])[
            0
        ]
        wanted = data.schema[attribute].values[value]
        true: list[list[int]] = []
        if regions is not None:
            true = regions[(regions[:, 0] == image) & (regions[:, 1] == attribute), 2:].tolist()
        hits = index.search({name: seen.embedding}, k=10)
        galleries.append(
            report.gallery_html(
                seen.picture,
                seen.overlay(true),
                seen.crop(),
                [_shown(hit, name, wanted) for hit in hits],
                f"{name}: {wanted}",
            )
        )
    return report.Section(
        f"Same {name}, anything else",
        "The query, its attention with the box found (white) and the true region (green), the crop that the "
        "patch branch sees, and the first ten hits.",
        "".join(galleries),
    )


def _shown(hit: Hit, name: str, wanted: str) -> report.GalleryHit:
    values = hit.metadata["labels"][name]
    return read_image(hit.metadata["path"]), f"{', '.join(values)} {hit.score:.2f}", wanted in values
