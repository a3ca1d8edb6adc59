"""One of two gloo processes that compute one contrastive loss; test_clip_losses.py starts them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from placket.losses import ClipLoss, SigLipLoss, gather_rows

ROWS, DIMS = 6, 5  # of a rank
RANKS = 2


class Towers(nn.Module):
    """A stand-in for two encoders, with what is learnt beside them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(2, DIMS, DIMS, generator=generator, dtype=torch.float64)
        self.image, self.text = (nn.Parameter(weight) for weight in weights)
        self.log_scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return images @ self.image, texts @ self.text, self.log_scale.exp(), self.bias


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Return images, texts and labels of all ranks; the first rank has fewer rows with a positive."""
    generator = torch.Generator().manual_seed(1)
    images, texts = torch.randn(2, RANKS * ROWS, DIMS, generator=generator, dtype=torch.float64)
    return images, texts, torch.tensor([-1, -1, 0, 1, -1, 2, 0, 1, 2, 2, 3, -1])


def contrast(loss: nn.Module, labelled: bool) -> Callable[..., Tensor]:
    def compute(towers: nn.Module, images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
        x, y, scale, bias = towers(images, texts)
        given = (labels,) if labelled else ()
        if isinstance(loss, SigLipLoss):
            return loss(x, y, scale, bias, *given)
        return loss(x, y, scale, *given) + 0 * bias  # DistributedDataParallel wants every parameter used

    return compute


def cases(gather: bool) -> dict[str, Callable[..., Tensor]]:
    both, one, sigmoid = ClipLoss(gather=gather), ClipLoss(symmetric=False, gather=gather), SigLipLoss(gather)
    losses = {"both ways": both, "one way": one, "sigmoid": sigmoid}
    return {
        f"{name}, {kind}": contrast(loss, kind == "labels")
        for name, loss in losses.items()
        for kind in ("diagonal", "labels")
    }


def main(out: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=RANKS)
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    results = {}
    for name, loss in cases(gather=True).items():
        towers = nn.parallel.DistributedDataParallel(Towers())
        value = loss(towers, *(x[own] for x in batch()))
        value.backward()
        results[f"{name} loss"] = value.detach()
        results |= {f"{name} {key}": x.grad for key, x in towers.module.named_parameters()}
    rows = torch.full((2, 3), rank + 1.0, requires_grad=True)
    joined = gather_rows(rows)
    # The loss of rank r asks for r + 1 of every row.
    (joined.sum() * (rank + 1)).backward()
    results |= {"joined": joined.detach(), "asked": rows.grad}
    safetensors.torch.save_file(results, Path(out) / f"{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
