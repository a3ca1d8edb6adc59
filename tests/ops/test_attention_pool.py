from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from placket import ops, reference

# B, A, C, P. On the CPU up to 8 attributes go through the own kernel and more through a GEMM; 4 attributes, 4
# positions and 256 channels are the blocks of the kernel.
SHAPES = [
    (1, 1, 1, 1),
    (2, 1, 5, 7),
    (3, 5, 300, 49),
    (2, 8, 64, 196),
    (2, 9, 17, 13),
    (1, 40, 33, 196),
    (3, 2, 4, 1),
]
EMPTY = [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0), (2, 12, 4, 0)]


def case(
    shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    b, a, c, p = shape
    return torch.randn(b, a, p, device=device, dtype=dtype) * 2, torch.randn(
        b, c, p, device=device, dtype=dtype
    )


def channels_last(values: Tensor) -> Tensor:
    return values.mT.contiguous().mT


def test_attention_pool_by_hand():
    logits = torch.tensor([[[0.0, math.log(3.0)]]])  # weights 1/4, 3/4
    values = torch.tensor([[[4.0, 8.0], [0.0, -4.0]]])
    for pool in (ops.attention_pool, reference.attention_pool):
        pooled, background, weights = pool(logits, values)
        torch.testing.assert_close(weights, torch.tensor([[[0.25, 0.75]]]))
        torch.testing.assert_close(pooled, torch.tensor([[[7.0, -3.0]]]))
        torch.testing.assert_close(background, torch.tensor([[[5.0, -1.0]]]))


@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_pool_matches_reference(shape: tuple[int, int, int, int], layout, device: torch.device):
    logits, values = case(shape, device)
    expected = reference.attention_pool(logits, values)
    # The closed form subtracts two sums, so that the error scales with the sum and not with the result.
    for got, want in zip(ops.attention_pool(logits, layout(values)), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    pooled, none, _ = ops.attention_pool(logits, layout(values), False)
    torch.testing.assert_close(pooled, expected[0], atol=1e-5, rtol=1e-5)
    assert none.numel() == 0


@pytest.mark.parametrize("shape", EMPTY)
def test_attention_pool_empty(shape: tuple[int, int, int, int], device: torch.device):
    b, a, c, p = shape
    given = [x.requires_grad_() for x in case(shape, device)]
    pooled, background, weights = ops.attention_pool(*given)
    assert (pooled.shape, background.shape, weights.shape) == ((b, a, c), (b, a, c), (b, a, p))
    assert not pooled.any()
    assert not background.any()
    grads = torch.autograd.grad(pooled.sum() + background.sum(), given)
    assert not any(g.any() for g in grads)


def test_attention_pool_single_position_has_no_background(device: torch.device):
    logits, values = case((2, 3, 4, 1), device)
    pooled, background, _ = ops.attention_pool(logits, values)
    torch.testing.assert_close(pooled, values.mT.expand(2, 3, 4))
    assert not background.any()


@pytest.mark.parametrize("attributes", [3, 12])
@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last])
def test_attention_pool_nan(attributes: int, layout, device: torch.device):
    logits, values = case((2, attributes, 6, 5), device)
    logits[1, 2, 3] = math.nan
    values[0, 4, 1] = math.nan
    pooled, background, weights = ops.attention_pool(logits, layout(values))
    expected = torch.zeros(2, attributes, 6, dtype=torch.bool, device=device)
    expected[1, 2] = expected[0, :, 4] = True
    assert torch.equal(pooled.isnan(), expected)
    assert torch.equal(background.isnan(), expected)
    assert weights.isnan().any(2).nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("attributes", [2, 12])
@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last])
def test_attention_pool_low_precision(attributes: int, layout, device: torch.device, assert_low_precision):
    logits, values = case((4, attributes, 64, 196), device, torch.bfloat16)
    exact = reference.attention_pool(logits.double(), values.double())
    plain = reference.attention_pool(logits, values)
    for results in zip(ops.attention_pool(logits, layout(values)), plain, exact, strict=True):
        assert_low_precision(*results)


@pytest.mark.parametrize("attributes", [2, 9])
def test_attention_pool_low_precision_gradients(attributes: int, device: torch.device, assert_low_precision):
    given = [x.requires_grad_() for x in case((2, attributes, 32, 49), device, torch.bfloat16)]
    wide = [x.detach().double().requires_grad_() for x in given]

    def grads(pool, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sum(out.float().square().sum() for out in pool(*inputs)), inputs)

    exact = grads(reference.attention_pool, wide)
    for results in zip(
        grads(ops.attention_pool, given), grads(reference.attention_pool, given), exact, strict=True
    ):
        assert_low_precision(*results)


@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last])
@pytest.mark.parametrize("shape", [(2, 2, 3, 4), (1, 9, 2, 3), (2, 1, 2, 1)])
@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True)])
def test_attention_pool_gradients(shape: tuple[int, int, int, int], given, layout, device: torch.device):
    logits, values = case(shape, device, torch.float64)
    leaves = [x.requires_grad_(g) for x, g in zip((logits, layout(values)), given, strict=True)]
    assert torch.autograd.gradcheck(ops.attention_pool, leaves)
    assert torch.autograd.gradcheck(lambda *x: ops.attention_pool(*x, False)[::2], leaves)


@pytest.mark.parametrize("used", list(itertools.product([False, True], repeat=3))[1:])
def test_attention_pool_gradient_of_each_result(used: tuple[bool, ...], device: torch.device):
    given = [x.requires_grad_() for x in case((2, 3, 4, 5), device, torch.float64)]
    probes = [torch.randn(2, 3, n, device=device, dtype=torch.float64) for n in (4, 4, 5)]

    def grads(pool) -> tuple[Tensor, ...]:
        chosen = [(out * probe).sum() for out, probe, u in zip(pool(*given), probes, used, strict=True) if u]
        return torch.autograd.grad(sum(chosen), given, allow_unused=True, materialize_grads=True)

    for got, want in zip(grads(ops.attention_pool), grads(reference.attention_pool), strict=True):
        torch.testing.assert_close(got, want)


def test_attention_pool_second_derivative_is_refused():
    logits, values = (x.requires_grad_() for x in case((2, 3, 4, 5), torch.device("cpu")))
    pooled = ops.attention_pool(logits, values)[0]
    (grad,) = torch.autograd.grad(pooled.square().sum(), logits, create_graph=True)
    with pytest.raises(
        RuntimeError, match="derivative for placket::_attention_pool_backward is not implemented"
    ):
        grad.sum().backward()


@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last])
def test_attention_pool_registration(layout, device: torch.device, opcheck):
    logits, values = case((2, 3, 4, 5), device)
    op = torch.ops.placket.attention_pool.default
    opcheck(op, logits, layout(values), False)
    opcheck(op, logits.requires_grad_(), layout(values).requires_grad_())
    backward = torch.ops.placket._attention_pool_backward.default
    grads = (torch.randn(2, 3, 4, device=device), None, torch.randn(2, 3, 5, device=device))
    opcheck(backward, *grads, logits.detach().softmax(2), layout(values).detach(), True, True)


def test_attention_pool_compiles(device: torch.device):
    compiled = torch.compile(ops.attention_pool, fullgraph=True, dynamic=True)
    for b in (2, 5):
        given = [x.requires_grad_() for x in case((b, 3, 8, 9), device)]
        ours, expected = compiled(*given), ops.attention_pool(*given)
        torch.testing.assert_close(ours, expected)
        grads = [torch.autograd.grad(sum(x.square().sum() for x in out), given) for out in (ours, expected)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("attributes", [3, 12])
def test_attention_pool_layouts(attributes: int, device: torch.device):
    logits, values = case((3, attributes, 10, 9), device)
    expected = ops.attention_pool(logits, values)
    strided = values.repeat_interleave(2, dim=2)[..., ::2]
    padded = torch.cat([torch.zeros(1, device=device), values.flatten()])[1:].view_as(values)
    transposed = logits.mT.contiguous().mT
    for same in ((logits, strided), (logits, padded), (transposed, values)):
        assert all(torch.equal(x, y) for x, y in zip(ops.attention_pool(*same), expected, strict=True))
    shared = values[:1].expand(3, 10, 9)
    copied = ops.attention_pool(logits, shared.clone())
    assert all(torch.equal(x, y) for x, y in zip(ops.attention_pool(logits, shared), copied, strict=True))


def test_attention_pool_gradient_keeps_the_layout_of_the_map(device: torch.device):
    image = torch.randn(2, 6, 3, 4, device=device).to(memory_format=torch.channels_last).requires_grad_()
    logits = torch.randn(2, 3, 12, device=device)
    values = image.flatten(2)
    assert values.data_ptr() == image.data_ptr()
    ops.attention_pool(logits, values)[0].sum().backward()
    assert image.grad.is_contiguous(memory_format=torch.channels_last)


def test_attention_pool_errors():
    logits, values = case((2, 3, 4, 5), torch.device("cpu"))
    with pytest.raises(
        ValueError, match=r"attention_pool: logits must have shape \[B, A, P\], got \[2, 15\]"
    ):
        ops.attention_pool(logits.flatten(1), values)
    message = r"values must have shape \[B, C, P\] with the B and P of logits, got \[2, 4, 4\]"
    with pytest.raises(ValueError, match=message):
        ops.attention_pool(logits, values[..., 1:])
    with pytest.raises(
        TypeError, match="attention_pool: logits must be float32, bfloat16 or float64, got Int"
    ):
        ops.attention_pool(logits.int(), values)
    with pytest.raises(TypeError, match="attention_pool: values must be Float like logits, got Double"):
        ops.attention_pool(logits, values.double())


@pytest.mark.gpu
def test_attention_pool_device_error():
    logits, values = case((2, 3, 4, 5), torch.device("cuda"))
    with pytest.raises(ValueError, match="attention_pool: values must be on cuda:0 like logits, got cpu"):
        ops.attention_pool(logits, values.cpu())


@pytest.mark.parametrize("attributes", [3, 12])
def test_attention_pool_is_deterministic(attributes: int, device: torch.device):
    given = [x.requires_grad_() for x in case((4, attributes, 64, 49), device)]
    runs = []
    for _ in range(2):
        out = ops.attention_pool(*given)
        runs.append([*out, *torch.autograd.grad(sum(x.square().sum() for x in out), given)])
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


def test_attention_pool_autocast_takes_the_wider_dtype(device: torch.device):
    logits, values = case((2, 3, 4, 5), device)
    with torch.autocast(device.type, torch.bfloat16):
        mixed = ops.attention_pool(logits.bfloat16(), values)
        low = ops.attention_pool(logits.bfloat16(), values.bfloat16())
    assert {x.dtype for x in mixed} == {torch.float32}
    assert {x.dtype for x in low} == {torch.bfloat16}
    torch.testing.assert_close(mixed, reference.attention_pool(logits.bfloat16().float(), values))


@pytest.mark.gpu
def test_attention_pool_on_a_side_stream():
    given = case((8, 3, 64, 196), torch.device("cuda"))
    expected = reference.attention_pool(*given)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = ops.attention_pool(*given)
    stream.synchronize()
    torch.testing.assert_close(results, expected, atol=1e-5, rtol=1e-5)
