from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from placket import ops, reference
from placket.losses import label_sets

KINDS = ["diagonal", "labels", "sets", "relation"]
# B, M, D: one pair; fewer dimensions than a register has lanes; more sizes of tiles than one; a product that
# is longer than one block of dimensions.
SHAPES = [(1, 1, 4), (7, 7, 3), (40, 40, 16), (70, 300, 33), (300, 90, 5), (33, 35, 530)]
Given = dict[str, Tensor | None]
# Of info_nce with and without columns, and of pairwise_sigmoid: what is called with x, y, scale, bias, given.
LOSSES: dict[str, Callable[..., Tensor]] = {
    "both ways": lambda by, x, y, scale, bias, given: by.info_nce(x, y, scale, **given),
    "one way": lambda by, x, y, scale, bias, given: by.info_nce(x, y, scale, **given, symmetric=False),
    "sigmoid": lambda by, x, y, scale, bias, given: by.pairwise_sigmoid(x, y, scale, bias, **given),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def inputs(b: int, m: int, d: int, device: torch.device, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    rows = [F.normalize(torch.randn(n, d, device=device), dim=1).to(dtype) for n in (b, m)]
    scalars = [torch.tensor(value, device=device, dtype=dtype) for value in (1 / 0.07, -3.0)]
    return [x.requires_grad_() for x in rows + scalars]


def given(kind: str, b: int, m: int, device: torch.device) -> Given:
    if kind == "labels":
        labels, y_labels = (torch.randint(-1, 9, (n,), device=device) for n in (b, m))
        return {"labels": labels, "y_labels": y_labels}
    if kind == "sets":
        labels, y_labels = (label_sets(torch.rand(n, 70, device=device) < 0.03) for n in (b, m))
        return {"labels": labels, "y_labels": y_labels}
    if kind == "relation":
        shape = (b, m)
        relation, valid = torch.rand(shape, device=device) < 0.1, torch.rand(shape, device=device) < 0.7
        return {"labels": relation, "valid": valid}
    return {}


def results(loss: Callable[..., Tensor], by: Any, leaves: list[Tensor], pairs: Given) -> list[Tensor]:
    """The loss and its gradients, 0 of what it does not depend on."""
    value = loss(by, *leaves, pairs)
    return [value, *torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)]


def check(ours: list[Tensor], exact: list[Tensor]) -> None:
    for x, y in zip(ours, exact, strict=True):
        # A float32 logit of up to 14 has an error of 1e-6, and so has a share that exp makes of it.
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-5 * y.abs().max().item() + 1e-7)


def test_info_nce_by_hand():
    # Logits [[ln 2, ln 3], [ln 4, ln 5]] and a third column; row 1 has two positives, column 2 has none.
    x = torch.eye(2, dtype=torch.float64)
    y = torch.tensor([[2, 4], [3, 5], [7, 11]], dtype=torch.float64).log() / 2
    scale = torch.tensor(2.0, dtype=torch.float64)
    relation = torch.tensor([[True, False, False], [True, True, False]])
    rows = (math.log(12 / 2) + math.log(20) - (math.log(4) + math.log(5)) / 2) / 2
    columns = (math.log(6) - (math.log(2) + math.log(4)) / 2 + math.log(8 / 5)) / 2
    for by in (ops, reference):
        found = by.info_nce(x, y, scale, relation)
        assert found.item() == pytest.approx((rows + columns) / 2, rel=1e-12)
        assert by.info_nce(x, y, scale, relation, symmetric=False).item() == pytest.approx(rows, rel=1e-12)


def test_pairwise_sigmoid_by_hand():
    x = torch.eye(2, dtype=torch.float64)
    y = torch.tensor([[2, 4], [3, 5]], dtype=torch.float64).log()
    scale, bias = torch.tensor(1.0, dtype=torch.float64), torch.tensor(math.log(2.0), dtype=torch.float64)
    odds = [4, 6, 8, 10]  # exp of the logits; pairs 0 and 3 are positives
    expected = -math.log(odds[0] / 5) + math.log(7) + math.log(9) - math.log(odds[3] / 11)
    for by in (ops, reference):
        assert by.pairwise_sigmoid(x, y, scale, bias).item() == pytest.approx(expected / 2, rel=1e-12)
        first = torch.tensor([[True, False], [False, False]])
        assert by.pairwise_sigmoid(x, y, scale, bias, valid=first).item() == pytest.approx(math.log(5 / 4))


@each_loss
@pytest.mark.parametrize("kind", KINDS)
def test_pair_contrast_matches_reference(kind: str, loss: Callable[..., Tensor], device: torch.device):
    for b, m, d in SHAPES:
        m = b if kind == "diagonal" else m
        leaves, pairs = inputs(b, m, d, device), given(kind, b, m, device)
        wide = [x.detach().double().requires_grad_() for x in leaves]
        check(results(loss, ops, leaves, pairs), results(loss, reference, wide, pairs))


@pytest.mark.parametrize("kind", ["diagonal", "labels"])
def test_info_nce_of_several_sizes_of_tiles(kind: str, device: torch.device):
    for n in (500, 1000):
        leaves, pairs = inputs(n, n, 8, device), given(kind, n, n, device)
        wide = [x.detach().double().requires_grad_() for x in leaves]
        logits = wide[2] * wide[0] @ wide[1].T
        if kind == "diagonal":
            positive = compared = torch.eye(n, dtype=torch.bool, device=device)
            compared = torch.ones_like(positive)
        else:
            labels, y_labels = (pairs[name][:, None] for name in ("labels", "y_labels"))
            compared = (labels >= 0) & (y_labels.T >= 0)
            positive = compared & (labels == y_labels.T)
        means = []
        for dim in (1, 0):
            lse = logits.masked_fill(~compared, -math.inf).logsumexp(dim)
            terms = lse - logits.where(positive, 0).sum(dim) / positive.sum(dim)
            means.append(terms[positive.any(dim)].mean())
        total = (means[0] + means[1]) / 2
        expected = [total, *torch.autograd.grad(total, wide[:3])]
        check(results(LOSSES["both ways"], ops, leaves, pairs)[:4], expected)


@each_loss
def test_pair_contrast_labels_of_both_sides_alike(loss: Callable[..., Tensor], device: torch.device):
    leaves, labels = inputs(20, 20, 8, device), torch.randint(-1, 5, (20,), device=device)
    relation, valid = labels[:, None] == labels, (labels[:, None] >= 0) & (labels >= 0)
    by_label = results(loss, ops, leaves, {"labels": labels})
    for x, y in zip(by_label, results(loss, ops, leaves, {"labels": relation, "valid": valid}), strict=True):
        assert torch.equal(x, y)


def test_info_nce_terms(device: torch.device):
    x, y, scale, _ = inputs(12, 9, 8, device)
    pairs = given("labels", 12, 9, device)
    terms = ops.info_nce_terms(x, y, scale, **pairs)
    positive, _ = (mask.to(device) for mask in reference.pair_relation(12, 9, *pairs.values(), None))
    assert torch.equal(terms.row_positives, positive.sum(1).float())
    assert torch.equal(terms.column_positives, positive.sum(0).float())
    assert not terms.rows[terms.row_positives == 0].any()
    means = [t[n > 0].mean() for t, n in zip(terms[::2], terms[1::2], strict=True)]
    torch.testing.assert_close((means[0] + means[1]) / 2, ops.info_nce(x, y, scale, **pairs))
    weights = torch.randn(12, device=device), torch.randn(9, device=device)
    ((terms.rows * weights[0]).sum() + (terms.columns * weights[1]).sum()).backward()
    wide = [v.detach().double().requires_grad_() for v in (x, y, scale)]
    total = 0
    for i, weight in enumerate(weights[0]):
        row = reference.info_nce(
            wide[0][i : i + 1],
            wide[1],
            wide[2],
            positive[i : i + 1],
            None,
            (pairs["labels"][i : i + 1, None] >= 0) & (pairs["y_labels"] >= 0),
            False,
        )
        total = total + weight * row
    for j, weight in enumerate(weights[1]):
        column = reference.info_nce(
            wide[1][j : j + 1],
            wide[0],
            wide[2],
            positive.T[j : j + 1],
            None,
            (pairs["y_labels"][j : j + 1, None] >= 0) & (pairs["labels"] >= 0),
            False,
        )
        total = total + weight * column
    check([x.grad, y.grad, scale.grad], list(torch.autograd.grad(total, wide)))


@each_loss
@pytest.mark.parametrize("scale", [0.0, 100.0, -5.0])
def test_pair_contrast_of_any_scale(scale: float, loss: Callable[..., Tensor], device: torch.device):
    leaves = inputs(50, 50, 16, device)
    leaves[2] = torch.tensor(scale, device=device, requires_grad=True)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    ours, exact = results(loss, ops, leaves, {}), results(loss, reference, wide, {})
    for x, y in zip(ours, exact, strict=True):
        # Logits of up to 100 have an error of 1e-5, and so has a share that exp makes of it.
        torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-4 * y.abs().max().item() + 1e-6)


def test_info_nce_of_equal_rows_at_scale_100(device: torch.device):
    row = F.normalize(torch.randn(1, 16, device=device), dim=1)
    x, y = (row.expand(64, 16).clone().requires_grad_() for _ in range(2))
    loss = ops.info_nce(x, y, torch.tensor(100.0, device=device))
    assert loss.item() == pytest.approx(math.log(64), rel=1e-6)
    loss.backward()
    # Every share is 1 / 64, and what a row gets from its positive it loses to its negatives.
    torch.testing.assert_close(x.grad, torch.zeros_like(x), rtol=0, atol=1e-5)


def test_info_nce_does_not_overflow(device: torch.device):
    x = torch.tensor([[1e4, 0.0], [0.0, 1e4]], device=device, requires_grad=True)
    loss = ops.info_nce(x, x.detach().flip(0), torch.tensor(1.0, device=device))
    assert loss.item() == 1e8
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.isfinite().all()


@each_loss
def test_pair_contrast_gradients(loss: Callable[..., Tensor], device: torch.device):
    for kind in KINDS:
        leaves = inputs(5, 5, 3, device, torch.float64)
        pairs = given(kind, 5, 5, device)
        leaves[2] = torch.tensor(1.3, dtype=torch.float64, device=device, requires_grad=True)
        assert torch.autograd.gradcheck(lambda *x, pairs=pairs: loss(ops, *x, pairs), leaves)


@each_loss
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_pair_contrast_some_gradients(
    wanted: tuple[int, ...], loss: Callable[..., Tensor], device: torch.device
):
    leaves = inputs(40, 40, 6, device)
    expected = results(loss, ops, leaves, {})
    some = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(leaves)]
    value = loss(ops, *some, {})
    value.backward()
    assert torch.equal(value, expected[0])
    for i, x in enumerate(some):
        if i in wanted:
            # The scale's gradient comes from the rows of either side, in another order of sums.
            torch.testing.assert_close(x.grad, expected[1 + i], rtol=1e-5, atol=1e-6)
        else:
            assert x.grad is None


@each_loss
def test_pair_contrast_without_anything_to_compare(loss: Callable[..., Tensor], device: torch.device):
    none = torch.zeros(40, 40, dtype=torch.bool, device=device)
    nobody = torch.full((40,), -1, device=device)
    cases: list[Given] = [
        {"labels": ~none, "valid": none},
        {"labels": nobody},
        {"labels": nobody[:, None] * 0},
    ]
    for pairs in cases:
        for result in results(loss, ops, inputs(40, 40, 8, device), pairs):
            assert torch.equal(result, torch.zeros_like(result))


def test_info_nce_without_a_positive_is_0(device: torch.device):
    none = torch.zeros(40, 30, dtype=torch.bool, device=device)
    for result in results(LOSSES["both ways"], ops, inputs(40, 30, 8, device), {"labels": none}):
        assert torch.equal(result, torch.zeros_like(result))


@each_loss
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_pair_contrast_empty(shape: tuple[int, int], loss: Callable[..., Tensor], device: torch.device):
    leaves = inputs(*shape, 4, device)
    for result in results(loss, ops, leaves, given("relation", *shape, device)):
        assert torch.equal(result, torch.zeros_like(result))


@each_loss
@pytest.mark.parametrize("side", [0, 1])
def test_pair_contrast_nan_stays_nan(side: int, loss: Callable[..., Tensor], device: torch.device):
    leaves = inputs(40, 40, 8, device)
    with torch.no_grad():
        leaves[side][35, 2] = math.nan
    assert loss(ops, *leaves, {}).isnan()
    value, *gradients = results(loss, ops, leaves, {})
    assert value.isnan()
    assert gradients[0].isnan().any()
    # A row that takes no part has none in the loss.
    labels = torch.arange(40, device=device)
    labels[35] = -1
    assert loss(ops, *leaves, {"labels": labels}).isfinite()


@each_loss
def test_pair_contrast_low_precision(
    loss: Callable[..., Tensor], device: torch.device, assert_low_precision: Callable[..., None]
):
    low = inputs(64, 64, 128, device, torch.bfloat16)
    wide = [x.detach().double().requires_grad_() for x in low]
    ours, exact = results(loss, ops, low, {}), results(loss, reference, wide, {})
    # bfloat16 rows have exact products, so that they cost no accuracy beyond their own rounding.
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-5, atol=0)
    assert [x.dtype for x in ours] == [torch.float32] + [torch.bfloat16] * 4
    plain = results(loss, reference, low, {})
    for result in zip(ours[1:], plain[1:], exact[1:], strict=True):
        assert_low_precision(*result)


@each_loss
@pytest.mark.parametrize("kind", KINDS)
def test_pair_contrast_bits_do_not_depend_on_threads(kind: str, loss: Callable[..., Tensor]):
    leaves, pairs = inputs(700, 700, 40, torch.device("cpu")), given(kind, 700, 700, torch.device("cpu"))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(results(loss, ops, leaves, pairs))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


@each_loss
def test_pair_contrast_is_deterministic(loss: Callable[..., Tensor], device: torch.device):
    leaves = inputs(300, 300, 64, device)
    first, second = (results(loss, ops, leaves, {}) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def status_kib(name: str) -> int:
    """A line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@each_loss
def test_pair_contrast_keeps_no_matrix(loss: Callable[..., Tensor]):
    leaves = inputs(8000, 8000, 8, torch.device("cpu"))
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
    before = status_kib("VmRSS")
    results(loss, ops, leaves, {})
    grown = status_kib("VmHWM") - before
    assert grown * 1024 < 8000**2  # a quarter of the matrix in float32


@each_loss
def test_pair_contrast_layouts(loss: Callable[..., Tensor], device: torch.device):
    leaves, pairs = inputs(12, 9, 9, device), given("labels", 12, 9, device)
    expected = results(loss, ops, leaves, pairs)
    x, y, *scalars = leaves
    padded = torch.cat([torch.zeros(1, device=device), y.detach().flatten()])[1:].view(9, 9).requires_grad_()
    others = [x.detach().T.contiguous().T.requires_grad_(), padded, *scalars]
    strided = {name: labels.repeat_interleave(2)[::2] for name, labels in pairs.items()}
    for found, wanted in zip(results(loss, ops, others, strided), expected, strict=True):
        assert torch.equal(found, wanted)


@each_loss
def test_pair_contrast_under_autocast(loss: Callable[..., Tensor], device: torch.device):
    x, y, scale, bias = (v.detach() for v in inputs(12, 12, 8, device))
    with torch.autocast(device.type, torch.bfloat16):
        low = loss(ops, x.bfloat16(), y.bfloat16(), scale, bias, {})
        mixed = loss(ops, x.bfloat16(), y, scale, bias, {})
        half = loss(ops, x.half(), y.half(), scale, bias, {})
    assert {low.dtype, mixed.dtype, half.dtype} == {torch.float32}
    for found, rows in (
        (low, (x.bfloat16(), y.bfloat16())),
        (mixed, (x.bfloat16(), y)),
        (half, (x.half(), y.half())),
    ):
        torch.testing.assert_close(found, loss(reference, *(v.float() for v in rows), scale, bias, {}))


def test_pair_contrast_second_derivative_is_refused():
    for loss in LOSSES.values():
        leaves = inputs(6, 6, 3, torch.device("cpu"))
        (grad,) = torch.autograd.grad(loss(ops, *leaves, {}), leaves[0], create_graph=True)
        with pytest.raises(RuntimeError, match=r"derivative for placket::_\w+_backward is not implemented"):
            grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_pair_contrast_registration(
    kind: str, dtype: torch.dtype, device: torch.device, opcheck: Callable[..., None]
):
    x, y, scale, bias = inputs(6, 6, 8, device, dtype)
    pairs = given(kind, 6, 6, device)
    arguments = [pairs.get(name) for name in ("labels", "y_labels", "valid")]
    for leaves in ((x, y, scale, bias), tuple(v.detach() for v in (x, y, scale, bias))):
        opcheck(torch.ops.placket.info_nce_terms.default, *leaves[:3], *arguments, False)
        opcheck(torch.ops.placket.info_nce.default, *leaves[:3], *arguments)
        opcheck(torch.ops.placket.pairwise_sigmoid_sum.default, *leaves, *arguments)
    opcheck(torch.ops.placket.pairwise_sigmoid.default, x.detach(), y, scale, None, *arguments)


@each_loss
def test_pair_contrast_compiles(loss: Callable[..., Tensor], device: torch.device):
    compiled = torch.compile(lambda *leaves: loss(ops, *leaves, {}), fullgraph=True, dynamic=True)
    for n in (6, 9):
        leaves = inputs(n, n, 8, device)
        value = compiled(*leaves)
        found = [value, *torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)]
        torch.testing.assert_close(found, results(loss, ops, leaves, {}))


def test_pair_contrast_errors():
    x, y, scale, bias = (v.detach() for v in inputs(4, 5, 8, torch.device("cpu")))
    loss, ids = ops.info_nce, torch.arange(5)
    with pytest.raises(
        ValueError, match=r"info_nce: y must have shape \[M, D\] with the D of x, got \[5, 7\]"
    ):
        loss(x, y[:, :7], scale)
    with pytest.raises(ValueError, match=r"y must have as many rows as x, 4, unless .* positives, got 5"):
        loss(x, y, scale)
    with pytest.raises(ValueError, match="y must have as many rows as x, 4, unless"):
        loss(x, y, scale, ids[:4])
    with pytest.raises(
        ValueError, match="labels must have a label or a set of classes for each of 4 rows, got"
    ):
        loss(x, y, scale, ids, ids)
    with pytest.raises(TypeError, match="labels must be Long, got Int"):
        loss(x, y, scale, ids[:4].int(), ids)
    with pytest.raises(
        ValueError, match=r"y_labels must have as many words to a row as labels, \[\], got \[2\]"
    ):
        loss(x, y, scale, ids[:4], torch.zeros(5, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="y_labels must come with labels, got them alone"):
        loss(x, y, scale, None, ids)
    with pytest.raises(ValueError, match=r"labels must have shape \[B, M\] = \[4, 5\], got \[5, 5\]"):
        loss(x, y, scale, torch.ones(5, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="y_labels must be absent where labels are a relation, got"):
        loss(x, y, scale, torch.ones(4, 5, dtype=torch.bool), ids)
    with pytest.raises(TypeError, match="valid must be Bool, got Float"):
        loss(x, y, scale, ids[:4], ids, torch.ones(4, 5))
    with pytest.raises(TypeError, match="pairwise_sigmoid: y must be Float like x, got Double"):
        ops.pairwise_sigmoid(x, y.double(), scale, bias)
    with pytest.raises(ValueError, match=r"pairwise_sigmoid: bias must have shape \[\], got \[1\]"):
        ops.pairwise_sigmoid(x, y, scale, bias[None])
    with pytest.raises(TypeError, match="scale must be of a floating dtype, got Long"):
        loss(x, y, torch.tensor(3))


@pytest.mark.gpu
def test_pair_contrast_device_error():
    x, y, scale, _ = inputs(4, 4, 8, torch.device("cuda"))
    with pytest.raises(ValueError, match="scale must be on cuda:0 like x, got cpu"):
        ops.info_nce(x, y, scale.cpu())


@pytest.mark.gpu
@each_loss
def test_pair_contrast_on_a_side_stream_without_synchronisation(loss: Callable[..., Tensor]):
    leaves = inputs(300, 300, 64, torch.device("cuda"))
    expected = results(loss, reference, leaves, {})
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            found = results(loss, ops, leaves, {})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
