"""Batch-hard mining (performance.md, row G10 and its twin on the CPU).

The hardest positive and negative of each of B embeddings of 512 dimensions, four images of each class, as in
P x K batches. Peers: plain PyTorch over the whole matrix of cosines, pytorch-metric-learning's miner, and the
product of the embeddings alone. Each with the most memory that it takes beyond its inputs.
"""

from __future__ import annotations

import importlib.util
from functools import partial

import torch
import torch.nn.functional as F
from bench_rank_metrics import extra_mib
from paired import Record, Run, compare
from torch import Tensor

from placket import ops

DIMS = 512
IMAGES_OF_CLASS = 4
SIZES = (64, 256, 1024, 4096, 16_384)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Cosines = tuple[Tensor, Tensor]
"""Of each row with its hardest positive and negative; libraries differ in which of equal ones they take."""


def ours(embeddings: Tensor, labels: Tensor) -> Cosines:
    found = ops.batch_hard(embeddings, labels)
    return found.positive_similarity, found.negative_similarity


def whole_matrix(embeddings: Tensor, labels: Tensor) -> Cosines:
    unit = F.normalize(embeddings, dim=1)
    cosine = unit @ unit.T
    same = labels[:, None] == labels
    negative, _ = cosine.masked_fill(same, -torch.inf).max(1)
    positive, _ = cosine.masked_fill_(~same.fill_diagonal_(False), torch.inf).min(1)
    return positive, negative


def pytorch_metric_learning(embeddings: Tensor, labels: Tensor) -> Cosines:
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.miners import BatchHardMiner

    anchor, positive, negative = BatchHardMiner(distance=CosineSimilarity())(embeddings, labels)
    unit = F.normalize(embeddings, dim=1)
    return (unit[anchor] * unit[positive]).sum(1), (unit[anchor] * unit[negative]).sum(1)


def product_alone(embeddings: Tensor, _: Tensor) -> Tensor:
    return embeddings @ embeddings.T


def same_cosines(ours: Cosines, theirs: object) -> None:
    if isinstance(theirs, tuple):
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)  # float32, another order of sums


def run(sizes: tuple[int, ...] = SIZES) -> list[Record]:
    torch.manual_seed(0)
    peers = {"PyTorch": whole_matrix, "the product alone": product_alone}
    if importlib.util.find_spec("pytorch_metric_learning"):
        peers["pytorch-metric-learning"] = pytorch_metric_learning
    else:
        print("pytorch-metric-learning: left out: not installed")
    records = []
    for size in sizes:
        embeddings = torch.randn(size, DIMS, device=DEVICE)
        labels = torch.arange(size, device=DEVICE) // IMAGES_OF_CLASS
        arms: dict[str, Run] = {name: partial(arm, embeddings, labels) for name, arm in peers.items()}
        mine = partial(ours, embeddings, labels)
        title = f"batch_hard, B = {size}, D = {DIMS}"
        pairs = 21 if size <= 1024 else 7 if size <= 4096 else 3
        record = compare(title, mine, arms, pairs=pairs, check=same_cosines, warmup=1)
        record["extra_mib"] = {name: extra_mib(arm) for name, arm in {"ours": mine, **arms}.items()}
        memory = ", ".join(f"{name} {mib:.0f}" for name, mib in record["extra_mib"].items())
        print(f"{title}: MiB beyond the inputs: {memory}", flush=True)
        records.append(record)
    return records


if __name__ == "__main__":
    run()
