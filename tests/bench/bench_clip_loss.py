"""Contrastive losses of images and texts (performance.md, row G9 and its twin on the CPU).

CLIP's and SigLIP's loss of B pairs of unit features of 512 dimensions and their gradients in features, scale
and bias, with the most memory that they take beyond the features. Peers: open_clip's ``ClipLoss`` and
``SigLipLoss`` (``pip install --no-deps open_clip_torch``; loss.py alone is imported, which needs torch only),
eager and compiled. At 16,384 pairs theirs takes several GiB.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from bench_rank_metrics import extra_mib
from paired import Record, Run, compare
from torch import Tensor

from placket import losses

DIMS = 512
SIZES = (64, 256, 1024, 4096, 16_384)
SCALE, BIAS = 1 / 0.07, -10.0
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Loss = Callable[..., Tensor]


def open_clip_losses() -> ModuleType | None:
    """Return open_clip's loss.py, or None where it is not installed."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        return None
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(package.origin).with_name("loss.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def step(loss: Loss, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the loss and its gradients."""
    value = loss(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs)


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for x, y in zip(ours, theirs, strict=True):
        # float32 logits of up to 14 are exact to 1e-6, and so are shares of them, relative to the largest.
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4 * y.abs().max().item())


def features(rows: int, dtype: torch.dtype) -> list[Tensor]:
    shared = torch.randn(rows, DIMS, device=DEVICE)
    sides = (F.normalize(shared + torch.randn_like(shared), dim=1).to(dtype) for _ in range(2))
    return [side.requires_grad_() for side in sides]


def compare_at(size: int, sigmoid: bool, dtype: torch.dtype) -> Record:
    inputs = features(size, dtype)
    scalars = (SCALE, BIAS) if sigmoid else (SCALE,)
    inputs += [torch.tensor(value, device=DEVICE, dtype=dtype, requires_grad=True) for value in scalars]
    name = "SigLipLoss" if sigmoid else "ClipLoss"
    mine: Run = partial(step, getattr(losses, name)(), inputs)
    arms: dict[str, Run] = {}
    theirs = open_clip_losses()
    if theirs is None:
        print("open_clip: left out: not installed")
    else:
        eager = getattr(theirs, name)()
        arms["open_clip"] = partial(step, eager, inputs)
        arms["open_clip compiled"] = partial(step, torch.compile(eager), inputs)
    title = f"{name}, B = {size}, D = {DIMS}, {str(dtype).removeprefix('torch.')}"
    pairs = 21 if size <= 1024 else 7 if size <= 4096 else 3
    # In bfloat16 the peer rounds the logits, and what comes out is not comparable to the digit.
    check = same if dtype == torch.float32 else None
    record = compare(title, mine, arms, pairs=pairs, check=check, warmup=1)
    record["extra_mib"] = {arm: extra_mib(run) for arm, run in {"ours": mine, **arms}.items()}
    memory = ", ".join(f"{arm} {mib:.0f}" for arm, mib in record["extra_mib"].items())
    print(f"{title}: MiB beyond the features: {memory}", flush=True)
    return record


def run(sizes: tuple[int, ...] = SIZES) -> list[Record]:
    torch.manual_seed(0)
    dtypes = [torch.float32] if DEVICE.type == "cpu" else [torch.float32, torch.bfloat16]
    return [
        compare_at(size, sigmoid, dtype) for dtype in dtypes for sigmoid in (False, True) for size in sizes
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    run(tuple(parser.parse_args().sizes))
