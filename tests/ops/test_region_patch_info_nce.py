from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from placket import ops, reference

# N, E, attributes. Above 64 rows the matrix of cosines may be made in more than one block, above 256 it is.
SHAPES = [(1, 1, 1), (2, 3, 2), (17, 5, 1), (48, 64, 8), (50, 33, 50), (1100, 4, 7)]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def case(n: int, e: int, attributes: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Inputs:
    rows = (torch.randn(n, e, device=device, dtype=dtype) for _ in range(3))
    return *rows, torch.randint(3, (n,), device=device), torch.randint(attributes, (n,), device=device)


def gradients(loss, inputs: Inputs, **options: float) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    return torch.autograd.grad(loss(*leaves, *inputs[3:], **options), leaves)


def test_region_patch_info_nce_by_double_loop():
    region, patch, background, labels, attributes = case(9, 4, 3, torch.device("cpu"), torch.float64)
    temperature, alpha = 0.3, 2.5

    def similarity(x: Tensor, y: Tensor) -> float:
        return math.exp((x @ y / (x.norm() * y.norm())).item() / temperature)

    total = 0.0
    for i in range(9):
        above = below = 0.0
        for j in range(9):
            below += similarity(region[i], patch[j])
            if attributes[j] == attributes[i]:
                below += alpha * similarity(region[i], background[j])
                if labels[j] == labels[i]:
                    above += similarity(region[i], patch[j])
        total -= math.log(above / below) / 9
    for loss in (ops.region_patch_info_nce, reference.region_patch_info_nce):
        value = loss(region, patch, background, labels, attributes, temperature, alpha)
        assert value.item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("alpha", [12.0, 0.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_region_patch_info_nce_matches_reference(
    shape: tuple[int, int, int], alpha: float, device: torch.device
):
    inputs = case(*shape, device)
    ours = ops.region_patch_info_nce(*inputs, alpha=alpha)
    torch.testing.assert_close(ours, reference.region_patch_info_nce(*inputs, alpha=alpha))
    wide = tuple(x.double() for x in inputs[:3]) + inputs[3:]
    exact = gradients(reference.region_patch_info_nce, wide, alpha=alpha)
    # An error of a float32 cosine, 1e-7, is divided by the temperature twice; short rows stretch a gradient.
    scale = max(x.abs().max().item() for x in exact)
    for got, want in zip(gradients(ops.region_patch_info_nce, inputs, alpha=alpha), exact, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5 * scale + 1e-7)


def test_region_patch_info_nce_labels_by_attribute_or_over_all(device: torch.device):
    *rows, labels, attributes = case(40, 8, 4, device)
    by_attribute = ops.region_patch_info_nce(*rows, labels, attributes)
    assert torch.equal(by_attribute, ops.region_patch_info_nce(*rows, attributes * 3 + labels, attributes))


def test_region_patch_info_nce_does_not_depend_on_the_order(device: torch.device):
    inputs = case(48, 16, 5, device, torch.float64)
    order = torch.randperm(48, device=device)
    permuted = tuple(x[order] for x in inputs)
    torch.testing.assert_close(ops.region_patch_info_nce(*permuted), ops.region_patch_info_nce(*inputs))
    expected = tuple(x[order] for x in gradients(ops.region_patch_info_nce, inputs))
    torch.testing.assert_close(gradients(ops.region_patch_info_nce, permuted), expected)


@pytest.mark.parametrize("temperature", [0.005, 100.0])
def test_region_patch_info_nce_is_stable(temperature: float, device: torch.device):
    inputs = case(48, 16, 4, device)
    wide = tuple(x.double() for x in inputs[:3]) + inputs[3:]
    exact = reference.region_patch_info_nce(*wide, temperature=temperature)
    ours = ops.region_patch_info_nce(*inputs, temperature=temperature)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=0)
    assert all(
        x.isfinite().all() for x in gradients(ops.region_patch_info_nce, inputs, temperature=temperature)
    )


def test_region_patch_info_nce_low_precision(device: torch.device, assert_low_precision):
    low = case(48, 256, 4, device, torch.bfloat16)
    wide = tuple(x.double() for x in low[:3]) + low[3:]
    # The loss is float32 throughout, so that bfloat16 inputs cost no accuracy beyond their own rounding.
    exact = reference.region_patch_info_nce(*wide)
    torch.testing.assert_close(ops.region_patch_info_nce(*low).double(), exact, rtol=1e-5, atol=0)
    plain = gradients(reference.region_patch_info_nce, low)
    expected = gradients(reference.region_patch_info_nce, wide)
    for results in zip(gradients(ops.region_patch_info_nce, low), plain, expected, strict=True):
        assert_low_precision(*results)


@pytest.mark.parametrize("given", list(itertools.product([False, True], repeat=3))[1:])
def test_region_patch_info_nce_gradients(given: tuple[bool, ...], device: torch.device):
    *rows, labels, attributes = case(6, 3, 2, device, torch.float64)
    leaves = [x.requires_grad_(g) for x, g in zip(rows, given, strict=True)]
    assert torch.autograd.gradcheck(lambda *x: ops.region_patch_info_nce(*x, labels, attributes, 0.5), leaves)


def test_region_patch_info_nce_zero_row(device: torch.device):
    region, patch, background, labels, attributes = case(5, 4, 2, device)
    region[0] = patch[1] = background[2] = 0
    inputs = (region, patch, background, labels, attributes)
    torch.testing.assert_close(ops.region_patch_info_nce(*inputs), reference.region_patch_info_nce(*inputs))
    for got, want in zip(
        *(gradients(f.region_patch_info_nce, inputs) for f in (ops, reference)), strict=True
    ):
        assert got.isfinite().all()
        # A zero row's gradient is of the order of 1 / 1e-12.
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_region_patch_info_nce_nan_passes_through(which: int, device: torch.device):
    inputs = case(40, 4, 2, device)
    inputs[which][3, 1] = math.nan
    assert ops.region_patch_info_nce(*inputs).isnan()


def test_region_patch_info_nce_empty(device: torch.device):
    inputs = case(0, 8, 2, device)
    assert ops.region_patch_info_nce(*inputs).item() == 0
    assert [x.shape for x in gradients(ops.region_patch_info_nce, inputs)] == [(0, 8)] * 3


def test_region_patch_info_nce_second_derivative_is_refused():
    *rows, labels, attributes = case(6, 3, 2, torch.device("cpu"))
    leaves = [x.requires_grad_() for x in rows]
    loss = ops.region_patch_info_nce(*leaves, labels, attributes)
    (grad,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
    with pytest.raises(
        RuntimeError, match="derivative for placket::_region_patch_info_nce_backward is not implemented"
    ):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_region_patch_info_nce_registration(dtype: torch.dtype, device: torch.device, opcheck):
    *rows, labels, attributes = case(6, 8, 2, device, dtype)
    op = torch.ops.placket.region_patch_info_nce.default
    opcheck(op, *rows, labels, attributes)
    opcheck(op, *(x.requires_grad_() for x in rows), labels, attributes, 0.1, 3.0)


def test_region_patch_info_nce_compiles(device: torch.device):
    compiled = torch.compile(ops.region_patch_info_nce, fullgraph=True, dynamic=True)
    for n in (6, 9):
        inputs = case(n, 8, 2, device)
        torch.testing.assert_close(compiled(*inputs), ops.region_patch_info_nce(*inputs))
        torch.testing.assert_close(gradients(compiled, inputs), gradients(ops.region_patch_info_nce, inputs))


def test_region_patch_info_nce_layouts(device: torch.device):
    region, *rest = case(12, 9, 3, device)
    expected = ops.region_patch_info_nce(region, *rest)
    assert torch.equal(ops.region_patch_info_nce(region.T.contiguous().T, *rest), expected)
    padded = torch.cat([torch.zeros(1, device=device), region.flatten()])[1:].view(12, 9)
    assert torch.equal(ops.region_patch_info_nce(padded, *rest), expected)
    strided = [x.repeat_interleave(2)[::2] for x in rest[2:]]
    assert torch.equal(ops.region_patch_info_nce(region, *rest[:2], *strided), expected)
    shared = region[:1].expand(12, 9)
    copied = ops.region_patch_info_nce(shared.clone(), *rest)
    assert torch.equal(ops.region_patch_info_nce(shared, *rest), copied)


def test_region_patch_info_nce_errors():
    region, patch, background, labels, attributes = case(4, 8, 2, torch.device("cpu"))
    loss = ops.region_patch_info_nce
    with pytest.raises(ValueError, match=r"patch must have shape \[N, E\] like region, got \[4, 7\]"):
        loss(region, patch[:, :7], background, labels, attributes)
    with pytest.raises(ValueError, match=r"attributes must have shape \[N\] with the N of region, got \[3\]"):
        loss(region, patch, background, labels, attributes[:3])
    with pytest.raises(TypeError, match="region_patch_info_nce: labels must be Long, got Int"):
        loss(region, patch, background, labels.int(), attributes)
    with pytest.raises(
        TypeError, match="region_patch_info_nce: background must be Float like region, got Double"
    ):
        loss(region, patch, background.double(), labels, attributes)
    with pytest.raises(ValueError, match="region_patch_info_nce: temperature must be above 0, got 0"):
        loss(region, patch, background, labels, attributes, 0.0)
    with pytest.raises(ValueError, match="region_patch_info_nce: alpha must be at least 0, got -1"):
        loss(region, patch, background, labels, attributes, 0.07, -1.0)


@pytest.mark.gpu
def test_region_patch_info_nce_device_error():
    region, patch, background, labels, attributes = case(4, 8, 2, torch.device("cuda"))
    with pytest.raises(ValueError, match="labels must be on cuda:0 like region, got cpu"):
        ops.region_patch_info_nce(region, patch, background, labels.cpu(), attributes)


def test_region_patch_info_nce_is_deterministic(device: torch.device):
    inputs = case(300, 64, 5, device)
    first, second = (gradients(ops.region_patch_info_nce, inputs) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_region_patch_info_nce_autocast_runs_in_float32(device: torch.device):
    region, patch, *rest = case(12, 8, 2, device)
    with torch.autocast(device.type, torch.bfloat16):
        mixed = ops.region_patch_info_nce(region.bfloat16(), patch, *rest)
    assert mixed.dtype == torch.float32
    expected = reference.region_patch_info_nce(region.bfloat16().float(), patch, *rest)
    torch.testing.assert_close(mixed, expected)


@pytest.mark.gpu
def test_region_patch_info_nce_on_a_side_stream():
    inputs = case(300, 64, 5, torch.device("cuda"))
    expected = reference.region_patch_info_nce(*inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        loss = ops.region_patch_info_nce(*inputs)
    stream.synchronize()
    torch.testing.assert_close(loss, expected)
