from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from placket import ops, reference

SHAPES = [(1, 1), (3, 7), (5, 33), (16, 512), (70001, 3), (0, 8), (4, 0)]
NAMES = ("gate_logits", "selection_logits", "image", "text", "image_clip", "text_clip")


def inputs(n: int, d: int, device: torch.device, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    shapes = [(n, d), (n,), *4 * [(n, d)]]
    return [torch.randn(shape, device=device, dtype=dtype) for shape in shapes]


def test_gated_fusion_by_hand() -> None:
    one, zero = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
    gate = torch.tensor([[math.log(3), -math.log(3)]])  # 3/4 and 1/4
    selection = torch.tensor([math.log(4)])  # 4/5
    image, text = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    # image part (3 + 1/5, 0), text part (0, 3 + 4/5)
    expected = torch.tensor([[3.2, 3.8]]) / math.hypot(3.2, 3.8)
    for function in (ops.gated_fusion, reference.gated_fusion):
        query, share = function(gate, selection, image, text, one, one.flip(1))
        torch.testing.assert_close(query, expected)
        torch.testing.assert_close(share, torch.tensor([3.2 / 7]))
        query, share = function(gate, selection, zero, zero, zero, zero)
        assert query.tolist() == [[0, 0]]
        assert share.tolist() == [0.5]


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_gated_fusion_matches_reference(n: int, d: int, device: torch.device) -> None:
    given = inputs(n, d, device)
    torch.testing.assert_close(ops.gated_fusion(*given), reference.gated_fusion(*given))


def test_gated_fusion_of_certain_gates(device: torch.device) -> None:
    given = inputs(4, 19, device)
    gate, selection, image, text, image_clip, text_clip = given
    for certain in (100.0, 1e30, math.inf):
        all_image = ops.gated_fusion(gate * 0 + certain, selection * 0 - certain, *given[2:])
        torch.testing.assert_close(all_image[0], torch.nn.functional.normalize(image + image_clip))
        torch.testing.assert_close(all_image[1], torch.ones(4, device=device))
        all_text = ops.gated_fusion(gate * 0 - certain, selection * 0 + certain, *given[2:])
        torch.testing.assert_close(all_text[0], torch.nn.functional.normalize(text + text_clip))
        torch.testing.assert_close(all_text[1], torch.zeros(4, device=device))


def test_gated_fusion_low_precision(device: torch.device, assert_low_precision: Callable[..., None]) -> None:
    low = inputs(64, 512, device, torch.bfloat16)
    probe = torch.randn(64, 512, device=device, dtype=torch.bfloat16)

    def results(function: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype) -> list[Tensor]:
        given = [x.to(dtype).requires_grad_() for x in low]
        query, share = function(*given)
        return [query, share, *torch.autograd.grad((query * probe.to(dtype)).sum(), given)]

    ours = results(ops.gated_fusion, torch.bfloat16)
    plain = results(reference.gated_fusion, torch.bfloat16)
    exact = results(reference.gated_fusion, torch.double)
    for triple in zip(ours, plain, exact, strict=True):
        assert_low_precision(*triple)


def test_gated_fusion_gradients(device: torch.device) -> None:
    exact = inputs(3, 6, device, torch.float64)
    for mask in range(1, 64):
        given = [x.clone().requires_grad_(bool(mask >> i & 1)) for i, x in enumerate(exact)]
        # The query leaves one direction without a gradient, so probes of every entry are needed.
        assert torch.autograd.gradcheck(lambda *x: ops.gated_fusion(*x)[0], given, fast_mode=mask != 63)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 7), (16, 512)])
def test_gated_fusion_gradients_match_reference(n: int, d: int, device: torch.device) -> None:
    given = [x.requires_grad_() for x in inputs(n, d, device)]
    probe = torch.randn(n, d, device=device)
    gradients = [
        torch.autograd.grad((function(*given)[0] * probe).sum(), given)
        for function in (ops.gated_fusion, reference.gated_fusion)
    ]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)  # sums of 512 in another order


def test_gated_fusion_zero_row_is_divided_by_a_constant(device: torch.device) -> None:
    """As torch.nn.functional.normalize: below its eps of 1e-12 nothing is taken out along the row."""
    given = inputs(2, 4, device, torch.float64)
    for x in given[2:]:
        x[0] = 0
    given = [x.requires_grad_() for x in given]
    gradients = [
        torch.autograd.grad(function(*given)[0].sum(), given)
        for function in (ops.gated_fusion, reference.gated_fusion)
    ]
    torch.testing.assert_close(*gradients)
    assert all(x.isfinite().all() for x in gradients[0])


@pytest.mark.parametrize("name", NAMES)
def test_gated_fusion_nan_passes_to_its_row(name: str, device: torch.device) -> None:
    given = inputs(3, 20, device)
    given[NAMES.index(name)].view(3, -1)[1, 0] = math.nan
    given = [x.requires_grad_() for x in given]
    query, share = ops.gated_fusion(*given)
    assert query.isnan().all(1).tolist() == [False, True, False]
    assert query.isnan().any(1).tolist() == [False, True, False]
    assert share.isnan().tolist() == [False, True, False]
    for gradient in torch.autograd.grad(query.sum(), given):
        assert gradient.view(3, -1).isnan().any(1).tolist() == [False, True, False]


def test_gated_fusion_share_has_no_gradient(device: torch.device) -> None:
    given = [x.requires_grad_() for x in inputs(3, 5, device)]
    query, share = ops.gated_fusion(*given)
    assert query.requires_grad
    assert not share.requires_grad


def test_gated_fusion_second_derivative_is_refused() -> None:
    given = [x.requires_grad_() for x in inputs(2, 4, torch.device("cpu"))]
    (grad,) = torch.autograd.grad(ops.gated_fusion(*given)[0][0, 0], given[0], create_graph=True)
    with pytest.raises(
        RuntimeError, match="derivative for placket::_gated_fusion_backward is not implemented"
    ):
        grad.sum().backward()


def test_gated_fusion_registration(device: torch.device, opcheck: Callable[..., None]) -> None:
    opcheck(torch.ops.placket.gated_fusion.default, *inputs(4, 8, device))
    opcheck(torch.ops.placket.gated_fusion.default, *(x.requires_grad_() for x in inputs(4, 8, device)))
    fixed = inputs(4, 8, device)
    opcheck(torch.ops.placket.gated_fusion.default, *(x.requires_grad_() for x in fixed[:4]), *fixed[4:])


def test_gated_fusion_compiles(device: torch.device) -> None:
    compiled = torch.compile(ops.gated_fusion, fullgraph=True, dynamic=True)
    for n in (4, 9):
        given = inputs(n, 8, device)
        torch.testing.assert_close(compiled(*given), ops.gated_fusion(*given))


def test_gated_fusion_layouts(device: torch.device) -> None:
    given = inputs(6, 9, device)
    expected = ops.gated_fusion(*given)
    strided = [torch.stack([x, x], -1)[..., 0] for x in given]
    padded = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in given]
    for others in (strided, padded):
        for ours, same in zip(ops.gated_fusion(*others), expected, strict=True):
            assert torch.equal(ours, same)
    expanded = [x[:1].expand(x.shape) for x in given]
    for ours, same in zip(
        ops.gated_fusion(*expanded), ops.gated_fusion(*(x.clone() for x in expanded)), strict=True
    ):
        assert torch.equal(ours, same)


def test_gated_fusion_errors() -> None:
    given = inputs(4, 8, torch.device("cpu"))

    def with_one(place: int, tensor: Tensor) -> list[Tensor]:
        return [*given[:place], tensor, *given[place + 1 :]]

    with pytest.raises(ValueError, match=r"gated_fusion: gate_logits must have shape \[N, D\], got \[8\]"):
        ops.gated_fusion(*with_one(0, given[0][0]))
    with pytest.raises(
        ValueError,
        match=r"selection_logits must have shape \[N\] with the N of gate_logits, got \[4, 1\]",
    ):
        ops.gated_fusion(*with_one(1, given[1][:, None]))
    for place in range(2, 6):
        with pytest.raises(
            ValueError, match=rf"{NAMES[place]} must have shape \[N, D\] like gate_logits, got \[4, 7\]"
        ):
            ops.gated_fusion(*with_one(place, given[place][:, :7]))
        with pytest.raises(TypeError, match=f"{NAMES[place]} must be Float like gate_logits, got Double"):
            ops.gated_fusion(*with_one(place, given[place].double()))
    with pytest.raises(TypeError, match="gate_logits must be float32, bfloat16 or float64, got Half"):
        ops.gated_fusion(*(x.half() for x in given))


def test_gated_fusion_is_deterministic_and_threads_do_not_matter(device: torch.device) -> None:
    given = [x.requires_grad_() for x in inputs(257, 130, device)]

    def results() -> list[Tensor]:
        query, share = ops.gated_fusion(*given)
        return [query, share, *torch.autograd.grad(query.square().cumsum(1).sum(), given)]

    threads = torch.get_num_threads()
    first = results()
    try:
        torch.set_num_threads(1 if threads > 1 else 3)
        second = results()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_gated_fusion_autocast_runs_in_float32(device: torch.device) -> None:
    given = inputs(4, 8, device)
    mixed = [given[0].bfloat16(), given[1].bfloat16(), *given[2:]]
    with torch.autocast(device.type, torch.bfloat16):
        query, share = ops.gated_fusion(*mixed)
    assert query.dtype == share.dtype == torch.float32
    torch.testing.assert_close((query, share), reference.gated_fusion(*(x.float() for x in mixed)))


@pytest.mark.gpu
def test_gated_fusion_on_a_side_stream() -> None:
    given = inputs(64, 128, torch.device("cuda"))
    expected = reference.gated_fusion(*given)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = ops.gated_fusion(*given)
    stream.synchronize()
    torch.testing.assert_close(found, expected)
