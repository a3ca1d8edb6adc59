"""Mean average precision over whole lists (performance.md, rows C6 and G11, and curve 4.3).

The three published test splits, attribute by attribute, with random embeddings of 1,024 dimensions. Peers:
the product of the embeddings alone, which is the floor; sorting with PyTorch; and, on every eighth query, the
published way, which walks down each list in Python, and the libraries that are installed. Then from 1,000 to
a million candidates, with the memory that the operator takes beyond its inputs.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from paired import Record, compare
from photographs import folder
from torch import Tensor

from placket import ops

DIMS = 1024
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Attribute(NamedTuple):
    queries: Tensor
    candidates: Tensor
    query_values: Tensor
    candidate_values: Tensor


Arm = Callable[[Attribute], Tensor]


def embeddings(rows: int, dims: int = DIMS) -> Tensor:
    return F.normalize(torch.randn(rows, dims, device=DEVICE), dim=1)


def split(dataset: str, every: int = 1) -> list[Attribute]:
    """Return the attributes of a published test split, with every so many-th query."""
    lists = folder(f"asfr-splits/{dataset}")
    asked, offered = (
        np.loadtxt(lists / f"{name}_test.txt", dtype=np.int64) for name in ("query", "candidate")
    )
    attributes = []
    for attribute in np.unique(asked[:, 1]):
        wanted = torch.from_numpy(asked[asked[:, 1] == attribute, 2][::every].copy()).to(DEVICE)
        values = torch.from_numpy(offered[offered[:, 1] == attribute, 2].copy()).to(DEVICE)
        attributes.append(Attribute(embeddings(len(wanted)), embeddings(len(values)), wanted, values))
    return attributes


def ours(a: Attribute) -> Tensor:
    return ops.average_precision(*a)


def product(a: Attribute) -> Tensor:
    return a.queries @ a.candidates.T


def published(a: Attribute) -> Tensor:
    """Do what the field's scripts do: argsort, then label, count and walk down each list in Python.

    After RPF's and ASEN++'s ``mean_average_precision``: the values are compared one by one as NumPy scalars.
    """
    every = np.matmul(a.queries.cpu().numpy(), a.candidates.cpu().numpy().T)
    wanted, values = a.query_values.cpu().numpy(), a.candidate_values.cpu().numpy()
    result = []
    for q, scores in enumerate(every):
        order = np.argsort(scores)[::-1]
        labels = []
        for rank in range(len(order)):
            labels.append(1 if values[order[rank]] == wanted[q] else 0)
        relevant = len([label for label in labels if label > 0])
        found, total = 0, 0.0
        for rank in range(len(labels)):
            if labels[rank] >= 1:
                found += 1
                total += float(found) / (rank + 1.0)
        result.append(total / relevant if relevant else 0.0)
    return torch.tensor(result, dtype=torch.float64)


def pytorch_sort(a: Attribute) -> Tensor:
    order = product(a).argsort(dim=1, descending=True)
    relevant = (a.candidate_values[order] == a.query_values[:, None]).double()
    rank = torch.arange(1, len(a.candidates) + 1, device=DEVICE)
    return (relevant * relevant.cumsum(1) / rank).sum(1) / relevant.sum(1).clamp_min(1)


def torchmetrics_map(a: Attribute) -> Tensor:
    from torchmetrics.retrieval import RetrievalMAP

    scores = product(a) + 2  # it takes a candidate of score 0 or less for irrelevant
    target = a.query_values[:, None] == a.candidate_values
    queries = torch.arange(len(scores), device=DEVICE)[:, None].expand_as(scores)
    metric = RetrievalMAP(empty_target_action="neg")
    return metric(scores.flatten(), target.flatten(), indexes=queries.flatten())


def scikit_learn(a: Attribute) -> Tensor:
    from sklearn.metrics import average_precision_score

    scores = product(a).cpu().numpy()
    target = (a.query_values[:, None] == a.candidate_values).cpu().numpy()
    pairs = zip(target, scores, strict=True)
    return torch.tensor([average_precision_score(t, s) if t.any() else 0.0 for t, s in pairs])


def open_metric_learning(a: Attribute) -> Tensor:
    # Its "utils" imports downloaders and plots that neither function needs; as an empty package it does not.
    utils = ModuleType("oml.utils")
    utils.__path__ = [str(Path(import_module("oml").__path__[0]) / "utils")]
    sys.modules.setdefault("oml.utils", utils)
    from oml.functional.knn import batched_knn_qg
    from oml.functional.metrics import calc_retrieval_metrics

    length = len(a.candidates)
    _, found, relevant = batched_knn_qg(
        a.queries, a.candidates, length, labels_query=a.query_values, labels_gallery=a.candidate_values
    )
    metrics = calc_retrieval_metrics(found, relevant, None, (), (), (length,), reduce=False, verbose=False)
    return metrics["map"][length]


def pytorch_metric_learning(a: Attribute) -> Tensor:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    calculator = AccuracyCalculator(include=("mean_average_precision",), k=len(a.candidates), device=DEVICE)
    found = calculator.get_accuracy(a.queries, a.query_values, a.candidates, a.candidate_values)
    # It leaves out queries without a relevant candidate, which count as 0 here.
    answered = torch.isin(a.query_values, a.candidate_values).double().mean()
    return found["mean_average_precision"] * answered


LIBRARIES: dict[str, tuple[Arm, tuple[str, ...]]] = {
    "torchmetrics": (torchmetrics_map, ("torchmetrics",)),
    "scikit-learn": (scikit_learn, ("sklearn",)),
    "OML": (open_metric_learning, ("oml", "omegaconf", "matplotlib")),
    "pytorch-metric-learning": (pytorch_metric_learning, ("pytorch_metric_learning", "faiss")),
}
"""Each with the modules that it needs. OML's own requirements name torchvision and NumPy 1; these functions
do without: pip install --no-deps open-metric-learning==4.0.0 omegaconf antlr4-python3-runtime==4.9.3."""


def over(arm: Arm, attributes: list[Attribute]) -> Callable[[], list[Tensor]]:
    return lambda: [arm(attribute) for attribute in attributes]


def same_means(ours: list[Tensor], theirs: list[Tensor]) -> None:
    # Two scores that differ in their last bit may change places and move a query's AP by about 1 / rank; the
    # libraries' sums are float32.
    for mine, other in zip(ours, theirs, strict=True):
        if other.dim() < 2:
            torch.testing.assert_close(other.double().mean(), mine.mean(), atol=1e-5, rtol=2e-3)


def splits() -> list[Record]:
    records = []
    for dataset in ("FashionAI", "DARN", "DeepFashion"):
        whole, part = split(dataset), split(dataset, every=8)
        scores = sum(len(a.queries) * len(a.candidates) for a in whole)
        title = f"rank_metrics, {dataset} test, {scores / 1e6:.1f} M pairs, D = {DIMS}"
        arms: dict[str, Arm] = {"the product alone": product, "PyTorch sort": pytorch_sort}
        peers = {name: over(arm, whole) for name, arm in arms.items()}
        records.append(compare(title, over(ours, whole), peers, pairs=7, check=same_means, warmup=1))
        slow = {"published Python": published}
        for name, (arm, modules) in LIBRARIES.items():
            if all(importlib.util.find_spec(module) for module in modules):
                slow[name] = arm
            else:
                print(f"{name}: left out: not installed")
        peers = {name: over(arm, part) for name, arm in slow.items()}
        title += ", every eighth query"
        records.append(compare(title, over(ours, part), peers, pairs=3, check=same_means, warmup=0))
    return records


def curve() -> list[Record]:
    """From 1,000 to a million candidates, 100 of them relevant to each query."""
    records = []
    for length, count in ((1000, 4096), (10_000, 4096), (100_000, 1024), (1_000_000, 256)):
        queries, candidates, weights = embeddings(count), embeddings(length), torch.ones(1, 1, device=DEVICE)
        rows = torch.arange(length, device=DEVICE)
        groups = torch.arange(count, device=DEVICE) % (length // 100)
        offsets = torch.arange(0, length + 1, 100, device=DEVICE)
        run = partial(
            ops.rank_metrics, [queries], [candidates], weights, groups, offsets, rows, cutoffs=[100]
        )
        out = torch.empty(min(count, 128), length, device=DEVICE)

        def product_alone(
            queries: Tensor = queries, candidates: Tensor = candidates, out: Tensor = out
        ) -> None:
            for block in queries.split(len(out)):
                torch.mm(block, candidates.T, out=out[: len(block)])

        title = f"rank_metrics, {count} x {length}, D = {DIMS}"
        record = compare(title, run, {"the product alone": product_alone}, pairs=3, warmup=0)
        record["extra_mib"] = extra_mib(run)
        record["ns_per_pair"] = record["peers"]["the product alone"]["ours_ms"] * 1e6 / count / length
        print(
            f"{title}: {record['ns_per_pair']:.1f} ns a pair, {record['extra_mib']:.0f} MiB beyond the inputs"
        )
        records.append(record)
    return records


def extra_mib(run: Callable[[], object]) -> float:
    """Return the most memory that a call has beyond what was there before it."""
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 2**10


def _status(name: str) -> int:
    """A line of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def run() -> list[Record]:
    torch.manual_seed(0)
    return splits() + curve()


if __name__ == "__main__":
    run()
