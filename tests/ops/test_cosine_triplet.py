from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from placket import ops, reference

SHAPES = [(1, 1), (3, 7), (16, 1024), (70001, 3), (0, 8)]


def rows(n: int, d: int, device: torch.device, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(n, d, device=device, dtype=dtype) for _ in range(3)]


def test_cosine_triplet_by_hand():
    anchor = torch.tensor([[2.0, 0.0]])
    positive = torch.tensor([[1.0, 1.0]])  # cosine sqrt(1/2)
    negative = torch.tensor([[0.0, -5.0]])  # cosine 0
    expected = torch.tensor([0.8 - math.sqrt(0.5)])
    torch.testing.assert_close(ops.cosine_triplet(anchor, positive, negative, 0.8), expected)
    torch.testing.assert_close(reference.cosine_triplet(anchor, positive, negative, 0.8), expected)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_cosine_triplet_matches_reference(n: int, d: int, device: torch.device):
    a, p, m = rows(n, d, device)
    torch.testing.assert_close(ops.cosine_triplet(a, p, m), reference.cosine_triplet(a, p, m))


def test_cosine_triplet_low_precision(device: torch.device, assert_low_precision):
    low = rows(64, 512, device, torch.bfloat16)
    exact = reference.cosine_triplet(*(x.double() for x in low))
    assert_low_precision(ops.cosine_triplet(*low), reference.cosine_triplet(*low), exact)


def test_cosine_triplet_gradients(device: torch.device):
    inputs = rows(5, 6, device, torch.float64)
    for mask in range(1, 8):
        given = [x.clone().requires_grad_(bool(mask >> i & 1)) for i, x in enumerate(inputs)]
        # A margin of 3 keeps every hinge away from its corner.
        assert torch.autograd.gradcheck(lambda *r: ops.cosine_triplet(*r, 3.0), given)


def test_cosine_triplet_inactive_rows_have_no_gradient(device: torch.device):
    a = torch.randn(4, 8, device=device, requires_grad=True)
    ops.cosine_triplet(a, a.detach(), -a.detach(), 0.2).sum().backward()
    assert torch.equal(a.grad, torch.zeros_like(a))


def test_cosine_triplet_zero_row(device: torch.device):
    a, p, n = rows(2, 4, device)
    a[0] = 0
    given = [x.requires_grad_() for x in (a, p, n)]
    hinge = ops.cosine_triplet(*given)
    assert hinge[0].item() == pytest.approx(0.2)
    hinge.sum().backward()
    assert all(x.grad.isfinite().all() for x in given)


def test_cosine_triplet_nan_passes_through(device: torch.device):
    a, p, n = rows(2, 4, device)
    a[1, 2] = math.nan
    hinge = ops.cosine_triplet(a, p, n)
    assert hinge.isnan().tolist() == [False, True]


def test_cosine_triplet_second_derivative_is_refused():
    a, p, n = (x.requires_grad_() for x in rows(2, 4, torch.device("cpu")))
    (grad,) = torch.autograd.grad(ops.cosine_triplet(a, p, n, 3.0).sum(), a, create_graph=True)
    with pytest.raises(
        RuntimeError, match="derivative for placket::_cosine_triplet_backward is not implemented"
    ):
        grad.sum().backward()


def test_cosine_triplet_registration(device: torch.device, opcheck):
    opcheck(torch.ops.placket.cosine_triplet.default, *rows(4, 8, device), 0.2)
    opcheck(torch.ops.placket.cosine_triplet.default, *(x.requires_grad_() for x in rows(4, 8, device)), 0.2)


def test_cosine_triplet_compiles(device: torch.device):
    compiled = torch.compile(ops.cosine_triplet, fullgraph=True, dynamic=True)
    for n in (4, 9):
        args = rows(n, 8, device)
        torch.testing.assert_close(compiled(*args), ops.cosine_triplet(*args))


def test_cosine_triplet_layouts(device: torch.device):
    a, p, n = rows(6, 9, device)
    expected = ops.cosine_triplet(a, p, n)
    assert torch.equal(ops.cosine_triplet(a.T.contiguous().T, p, n), expected)
    padded = torch.cat([torch.zeros(1, device=device), a.flatten()])[1:].view(6, 9)
    assert torch.equal(ops.cosine_triplet(padded, p, n), expected)
    expanded = p[:1].expand(6, 9)
    assert torch.equal(ops.cosine_triplet(a, expanded, n), ops.cosine_triplet(a, expanded.clone(), n))


def test_cosine_triplet_errors():
    a, p, n = rows(4, 8, torch.device("cpu"))
    with pytest.raises(
        ValueError, match=r"cosine_triplet: positive must have shape \[N, D\] like anchor, got \[4, 7\]"
    ):
        ops.cosine_triplet(a, p[:, :7], n)
    with pytest.raises(
        TypeError, match="cosine_triplet: anchor must be float32, bfloat16 or float64, got Long"
    ):
        ops.cosine_triplet(a.long(), p, n)
    with pytest.raises(TypeError, match="cosine_triplet: negative must be Float like anchor, got Double"):
        ops.cosine_triplet(a, p, n.double())


def test_cosine_triplet_is_deterministic(device: torch.device):
    args = [x.requires_grad_() for x in rows(64, 128, device)]
    first = torch.autograd.grad(ops.cosine_triplet(*args).sum(), args)
    second = torch.autograd.grad(ops.cosine_triplet(*args).sum(), args)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_cosine_triplet_autocast_runs_in_float32(device: torch.device):
    a, p, n = rows(4, 8, device)
    with torch.autocast(device.type, torch.bfloat16):
        mixed = ops.cosine_triplet(a.bfloat16(), p, n)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, reference.cosine_triplet(a.bfloat16().float(), p, n))


@pytest.mark.gpu
def test_cosine_triplet_on_a_side_stream():
    args = rows(64, 128, torch.device("cuda"))
    expected = reference.cosine_triplet(*args)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        hinge = ops.cosine_triplet(*args)
    stream.synchronize()
    torch.testing.assert_close(hinge, expected)
