"""Class centres by exponential average: one call with a batch's embeddings and classes.

Peers: a loop over the classes, as methods' own code has it, which asks each class for its rows and so waits
for the device each time; and the best plain PyTorch, index_add_ of the unit rows, eager and compiled.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from paired import Record, compare
from torch import Tensor

from placket import ops

E = 1024
MOMENTUM = 0.9
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def loop(centres: Tensor, embeddings: Tensor, classes: Tensor) -> Tensor:
    rows = F.normalize(embeddings, dim=1)
    moved = centres.clone()
    for c in range(len(centres)):
        own = rows[classes == c]
        if len(own):
            moved[c] = F.normalize(MOMENTUM * centres[c] + (1 - MOMENTUM) * own.mean(0), dim=0)
    return moved


def index_add(centres: Tensor, embeddings: Tensor, classes: Tensor) -> Tensor:
    rows = F.normalize(embeddings, dim=1)
    sums = torch.zeros_like(centres).index_add_(0, classes, rows)
    counts = centres.new_zeros(len(centres), 1).index_add_(0, classes, rows.new_ones(len(rows), 1))
    moved = F.normalize(MOMENTUM * centres + (1 - MOMENTUM) * sums / counts.clamp_min(1), dim=1)
    return torch.where(counts > 0, moved, centres)


def centres_of(count: int, rows: int) -> Record:
    centres = F.normalize(torch.randn(count, E, device=DEVICE), dim=1)
    embeddings = torch.randn(rows, E, device=DEVICE)
    classes = torch.randint(count, (rows,), device=DEVICE)
    given = centres, embeddings, classes
    compiled = torch.compile(index_add)
    return compare(
        f"class centres, {count} classes, {rows} rows",
        lambda: ops.class_centres(*given, MOMENTUM),
        {
            "loop": lambda: loop(*given),
            "index_add_": lambda: index_add(*given),
            "index_add_ compiled": lambda: compiled(*given),
        },
        check=torch.testing.assert_close,
    )


def run() -> list[Record]:
    torch.manual_seed(0)
    return [centres_of(count, rows) for count in (54, 185, 1000) for rows in (48, 512, 4096)]


if __name__ == "__main__":
    run()
