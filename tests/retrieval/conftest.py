from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor


@pytest.fixture
def opcheck() -> Callable[..., None]:
    """torch's own examination of schema, fake kernel, autograd registration and AOT dispatch."""

    def check(op: torch._ops.OpOverload, *args: object) -> None:
        torch.library.opcheck(op, args)

    return check


@pytest.fixture
def whole_vectors() -> Callable[..., Tensor]:
    """Rows of small whole numbers: every order of summation gives the same score, and ties are many."""

    def make(rows: int, dims: int, device: torch.device, most: int = 2) -> Tensor:
        return torch.randint(-most, most + 1, (rows, dims), device=device).float()

    return make


@pytest.fixture
def by_threads() -> Callable[..., list[object]]:
    """Call a function with one thread and with several."""

    def call(function: Callable[[], object]) -> list[object]:
        before = torch.get_num_threads()
        results = []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append(function())
        finally:
            torch.set_num_threads(before)
        return results

    return call


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
