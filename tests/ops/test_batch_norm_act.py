from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from placket import ops, reference


def case(
    shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(shape, device=device, dtype=torch.float64) * 2 + 3
    residual = torch.randn(shape, device=device, dtype=torch.float64)
    weight = torch.rand(shape[1], device=device, dtype=statistics) + 0.5
    bias = torch.randn(shape[1], device=device, dtype=statistics)
    return x.to(dtype), residual.to(dtype), weight, bias


def test_batch_norm_act_by_hand():
    x = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    residual = torch.tensor([0.5, 0.5]).view(2, 1, 1, 1)
    out, mean, variance = ops.batch_norm_act(x, residual, torch.tensor([2.0]), torch.tensor([1.0]), 1, 0.0)
    assert (mean.item(), variance.item()) == (2.0, 1.0)
    assert out.flatten().tolist() == [0.0, 3.5]  # -2 + 1 + 0.5 is cut off


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (6, 3, 5, 7), (6, 64, 14, 14), (3, 17, 40, 41), (0, 4, 3, 3)]
)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("relu", [True, False])
def test_batch_norm_act_matches_reference(shape: tuple[int, int, int, int], groups: int, relu: bool, device):
    if shape[0] % groups or not shape[0]:
        groups = 1
    x, residual, weight, bias = case(shape, device)
    for r in (None, residual):
        ours = ops.batch_norm_act(x, r, weight, bias, groups, 1e-5, relu)
        if shape[0] == 0:
            assert ours[0].shape == shape
            continue
        expected = reference.batch_norm_act(x, r, weight, bias, groups, 1e-5, relu)
        # A group of one position divides a rounding error by sqrt(eps), 300 times.
        atol = 3e-3 if shape[0] // groups * shape[2] * shape[3] == 1 else 2e-5
        for got, want in zip(ours, expected, strict=True):
            torch.testing.assert_close(got, want, atol=atol, rtol=2e-5)


def test_batch_norm_act_equals_torch_batch_norm(device: torch.device):
    x, _, weight, bias = case((4, 8, 6, 6), device)
    out, mean, variance = ops.batch_norm_act(x, None, weight, bias, relu=False)
    running_mean, running_var = torch.zeros(8, device=device), torch.zeros(8, device=device)
    expected = torch.nn.functional.batch_norm(x, running_mean, running_var, weight, bias, True, 1.0)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mean[0], running_mean)
    count = x.numel() / 8
    torch.testing.assert_close(variance[0] * count / (count - 1), running_var)


def test_batch_norm_act_survives_a_large_mean(device: torch.device):
    x = torch.randn(8, 4, 16, 16, device=device) * 1e-2 + 1e3
    _, _, variance = ops.batch_norm_act(x, None, *torch.ones(2, 4, device=device))
    torch.testing.assert_close(
        variance[0].double(), x.double().var((0, 2, 3), correction=0), rtol=1e-4, atol=0
    )


def test_batch_norm_act_low_precision(device: torch.device, assert_low_precision):
    x, residual, weight, bias = case((6, 32, 7, 7), device, torch.bfloat16)
    exact = reference.batch_norm_act(x.double(), residual.double(), weight.double(), bias.double(), 3)[0]
    plain = reference.batch_norm_act(x, residual, weight.bfloat16(), bias.bfloat16(), 3)[0]
    assert_low_precision(ops.batch_norm_act(x, residual, weight, bias, 3)[0], plain, exact)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("given", list(itertools.product([False, True], repeat=4))[1:])
def test_batch_norm_act_gradients(relu: bool, given: tuple[bool, ...], device: torch.device):
    inputs = [
        t.requires_grad_(g) for t, g in zip(case((4, 3, 2, 3), device, torch.float64), given, strict=True)
    ]
    assert torch.autograd.gradcheck(lambda *t: ops.batch_norm_act(*t, 2, 1e-5, relu)[0], inputs)


def test_batch_norm_act_second_derivative_is_refused():
    x, r, w, b = (t.requires_grad_() for t in case((2, 3, 4, 4), torch.device("cpu")))
    (grad,) = torch.autograd.grad(ops.batch_norm_act(x, r, w, b)[0].square().sum(), x, create_graph=True)
    with pytest.raises(
        RuntimeError, match="derivative for placket::_batch_norm_act_backward is not implemented"
    ):
        grad.sum().backward()


def test_batch_norm_act_registration(device: torch.device, opcheck):
    x, residual, weight, bias = case((4, 3, 5, 5), device)
    opcheck(torch.ops.placket.batch_norm_act.default, x, None, weight, bias, 2)
    leaves = [t.requires_grad_() for t in (x, residual, weight, bias)]
    opcheck(torch.ops.placket.batch_norm_act.default, *leaves, 2)


def test_batch_norm_act_compiles(device: torch.device):
    compiled = torch.compile(ops.batch_norm_act, fullgraph=True, dynamic=True)
    for b in (2, 6):
        inputs = case((b, 8, 5, 5), device)
        torch.testing.assert_close(compiled(*inputs, 2), ops.batch_norm_act(*inputs, 2))


def test_batch_norm_act_layouts(device: torch.device):
    x, residual, weight, bias = case((4, 8, 5, 6), device)
    expected = ops.batch_norm_act(x, residual, weight, bias)[0]
    assert expected.is_contiguous(memory_format=torch.channels_last)
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(ops.batch_norm_act(last, residual, weight, bias)[0], expected)
    strided = x.repeat(1, 1, 1, 2)[..., ::2].copy_(x)
    assert torch.equal(ops.batch_norm_act(strided, residual, weight, bias)[0], expected)


def test_batch_norm_act_does_not_depend_on_threads():
    inputs = [t.requires_grad_() for t in case((6, 32, 33, 33), torch.device("cpu"))]

    def run(threads: int) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            out = ops.batch_norm_act(*inputs, 3)
            return [*out, *torch.autograd.grad(out[0].square().sum(), inputs)]
        finally:
            torch.set_num_threads(before)

    assert all(torch.equal(a, b) for a, b in zip(run(1), run(2), strict=True))


def test_batch_norm_act_errors():
    x, residual, weight, bias = case((4, 3, 2, 2), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"batch_norm_act: groups must divide the batch of 4, got 3"):
        ops.batch_norm_act(x, None, weight, bias, 3)
    with pytest.raises(ValueError, match=r"batch_norm_act: weight must have shape \[C\], got \[2\]"):
        ops.batch_norm_act(x, None, weight[:2], bias)
    with pytest.raises(
        ValueError, match=r"residual must have shape \[4, 3, 2, 2\] like input, got \[3, 3, 2, 2\]"
    ):
        ops.batch_norm_act(x, residual[:3], weight, bias)
    with pytest.raises(TypeError, match="batch_norm_act: bias must be Float, got Double"):
        ops.batch_norm_act(x, None, weight, bias.double())
