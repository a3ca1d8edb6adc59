"""What AGCN makes of its two sides, forward and backward, against plain PyTorch, eager and compiled.

The floor is the time to read and write each tensor once at the bandwidth that the machine copies a large
buffer with, where they are too large for a cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from paired import Record, compare
from torch import Tensor

from placket import ops, reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = [(64, 512), (1024, 512), (16384, 512), (1024, 1024)]
CACHED = 1 << 27  # bytes


def bandwidth() -> float:
    """Bytes a second of a copy, each read or written counted."""
    source = torch.ones(1 << 27, device=DEVICE)
    target = torch.empty_like(source)

    def seconds() -> float:
        begin = time.perf_counter()
        target.copy_(source)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    return 2 * source.nbytes / min(seconds() for _ in range(5))


def fusion(n: int, d: int, speed: float) -> Record:
    given = [torch.randn(shape, device=DEVICE) for shape in [(n, d), (n,), *4 * [(n, d)]]]
    for tensor in given:
        tensor.requires_grad_()
    probe = torch.randn(n, d, device=DEVICE)

    def step(function: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        query, share = function(*given)
        return (query.detach(), share.detach(), *torch.autograd.grad(query, given, probe))

    def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
        for x, y in zip(ours, theirs, strict=True):
            # Sums of D terms of either sign in float32.
            torch.testing.assert_close(x, y, atol=1e-5 * y.abs().max().item(), rtol=1e-4)

    compiled = torch.compile(reference.gated_fusion)
    peers = {"PyTorch": lambda: step(reference.gated_fusion), "PyTorch compiled": lambda: step(compiled)}
    # Forward reads five and writes one; backward reads six and writes five.
    nbytes = 17 * given[0].nbytes
    floor = 1e3 * nbytes / speed if nbytes > CACHED else None
    name = f"gated_fusion forward + backward, {n} x {d}"
    return compare(name, lambda: step(ops.gated_fusion), peers, check=same, floor_ms=floor)


def run() -> list[Record]:
    torch.manual_seed(0)
    speed = bandwidth()
    return [fusion(n, d, speed) for n, d in SHAPES]


if __name__ == "__main__":
    run()
