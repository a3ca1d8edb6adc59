from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def assert_low_precision() -> Callable[[Tensor, Tensor, Tensor], None]:
    """Flash-attention's rule: our error in bfloat16 is at most twice that of plain PyTorch in bfloat16, plus
    one rounding of the result (2**-8 of its largest entry)."""

    def check(ours: Tensor, plain: Tensor, exact: Tensor) -> None:
        error = (ours.double() - exact.double()).abs().max()
        allowed = 2 * (plain.double() - exact.double()).abs().max() + exact.double().abs().max() * 2**-8
        assert error <= allowed, f"error {error:.3g} exceeds {allowed:.3g}"

    return check


@pytest.fixture
def opcheck() -> Callable[..., None]:
    """torch's own examination of schema, fake kernel, autograd registration and AOT dispatch."""

    def check(op: torch._ops.OpOverload, *args: object) -> None:
        torch.library.opcheck(op, args)

    return check
