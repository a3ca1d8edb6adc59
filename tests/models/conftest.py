from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """With two threads torch 2.13's oneDNN corrupts the heap in the weight gradient of 1 x 1 convolutions of
    stride 2 with eight input channels or fewer, channels last, which narrow ResNets have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
