from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from placket import ops, reference

Hits = tuple[Tensor, Tensor, Tensor]


def same(got: Hits, expected: Hits) -> None:
    for name, a, b in zip(("scores", "rows", "parts"), got, expected, strict=True):
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name


def compressed(dtype: torch.dtype, queries, database, weights, keep=None, k=10) -> Hits:
    packed = [ops.quantize(rows, dtype) for rows in database]
    return ops.flat_search_compressed(
        queries, database, [codes for codes, _ in packed], [bounds for _, bounds in packed], weights, keep, k
    )


@pytest.fixture(params=[None, torch.int8, torch.bfloat16], ids=["float32", "int8", "bfloat16"])
def search(request: pytest.FixtureRequest):
    """The search over each form of the rows: all have the same hits."""
    if request.param is None:
        return ops.flat_search
    return lambda *args, **kwargs: compressed(request.param, *args, **kwargs)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (3, 7, 2), (5, 1500, 9), (70, 33, 20), (0, 4, 3), (300, 1030, 8), (2, 9000, 3), (2, 0, 5)],
)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0, 1.5])
def test_flat_search_matches_reference(shape, share, device, whole_vectors, search):
    count, length, dims = shape
    q, d = [whole_vectors(count, dims, device)], [whole_vectors(length, dims, device)]
    k = round(length * share)
    same(search(q, d, [1.0], None, k), reference.flat_search(q, d, [1.0], None, k))


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, -2.0, 3.0], [0.0, -1.0, 0.1], [-1.0, 0.0, 0.0]])
@pytest.mark.parametrize("share", [None, 0.0, 0.01, 0.7, 1.0])
def test_flat_search_of_several_spaces(weights, share, device, whole_vectors, search):
    count, length, dims = 7, 3000, (5, 130, 16)
    q = [whole_vectors(count, d, device) for d in dims]
    x = [whole_vectors(length, d, device) for d in dims]
    keep = None if share is None else torch.rand(length, device=device) < share
    for k in (1, 20, 5000):
        same(search(q, x, weights, keep, k), reference.flat_search(q, x, weights, keep, k))


def test_flat_search_by_hand(device: torch.device, search):
    database = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, -1.0]], device=device)
    queries = torch.tensor([[2.0, 1.0], [0.0, -0.0]], device=device)
    scores, rows, parts = search([queries], [database], [1.0], None, 3)
    assert rows.tolist() == [[0, 2, 1], [0, 1, 2]]
    assert scores.tolist() == [[2.0, 2.0, 1.0], [0.0, 0.0, 0.0]]
    keep = torch.tensor([False, True, True, True], device=device)
    scores, rows, parts = search([queries, queries.flip(1)], [database, database], [-1.0, 0.5], keep, 2)
    assert rows.tolist() == [[3, 1], [1, 2]]
    assert scores.tolist() == [[1.5, 0.0], [0.0, 0.0]]
    assert parts[0].tolist() == [[-3.0, -3.0], [1.0, 2.0]]


def test_flat_search_rounds_after_every_product():
    """The score of a weighted query is that of NumPy's float32, product and sum rounded apart."""
    q, x = [torch.randn(4, d) for d in (24, 40)], [torch.randn(500, d) for d in (24, 40)]
    weights = [0.3, -1.7]
    scores, _, parts = ops.flat_search(q, x, weights, None, 500)
    p = parts.numpy()
    expected = np.float32(weights[0]) * p[:, :, 0] + np.float32(weights[1]) * p[:, :, 1]
    np.testing.assert_array_equal(scores.numpy(), expected)
    one, rows, _ = ops.flat_search(q[:1], x[:1], [1.0], None, 500)
    for i in range(4):
        by_row = dict(zip(rows[i].tolist(), one[i].tolist(), strict=True))
        found = ops.flat_search(q, x, weights, None, 500)[1][i].tolist()
        assert [by_row[r] for r in found] == parts[i, :, 0].tolist()


def test_flat_search_infinite_scores(device: torch.device):
    database = torch.tensor([[-float("inf")], [1.0], [float("inf")], [-float("inf")]], device=device)
    scores, rows, _ = ops.flat_search([torch.ones(1, 1, device=device)], [database], [1.0], None, 4)
    assert rows.tolist() == [[2, 1, 0, 3]]
    assert scores[0].tolist() == [float("inf"), 1.0, -float("inf"), -float("inf")]


def test_flat_search_does_not_depend_on_threads_or_company(by_threads, search):
    q, x = [torch.randn(600, d) for d in (37, 16)], [torch.randn(9001, d) for d in (37, 16)]
    for rows in x:
        rows[4000:] = rows[torch.arange(5001) % 4000]  # twins, far apart
    weights, keep = [0.7, -0.4], torch.rand(9001) < 0.8
    expected = ops.flat_search(q, x, weights, keep, 20)
    for got in by_threads(lambda: search(q, x, weights, keep, 20)):
        same(got, expected)
    for few in (1, 3, 239, 240, 241):
        for got in by_threads(lambda few=few: search([part[:few] for part in q], x, weights, keep, 20)):
            same(got, tuple(part[:few] for part in expected))


def test_flat_search_does_not_depend_on_other_rows(search):
    """Rows score the same wherever they stand and whatever stands beside them."""
    q, x = [torch.randn(5, 96)], [torch.randn(5000, 96)]
    keep = torch.zeros(5000, dtype=torch.bool)
    keep[torch.randperm(5000)[:90]] = True
    few = [x[0][keep]]
    scores, rows, parts = search(q, few, [1.0], None, 90)
    same(search(q, x, [1.0], keep, 90), (scores, keep.nonzero().squeeze(1)[rows], parts))


def test_flat_search_compressed_is_exact(search):
    """Unit rows, near twins among them, and rows and queries that fit badly into few bits."""
    for dims in (4, 63, 128, 1000):
        q, x = torch.randn(40, dims), torch.randn(4000, dims)
        x[1000:2000] = x[:1000] + 1e-6 * torch.randn(1000, dims)  # below what int8 tells apart
        x[2000:2500, 0] += 50  # one large value: the others round to 0
        x[2500:3000] *= 1e-3
        x[3000:3500] *= 1e4
        x[3500:3600] = 0
        q[10:15, -1] = 1e5
        q[15:20] *= 1e-20
        q[20:22] = 0
        q[22:30] = x[1005:1013]
        for queries, rows in ((q, x), (q, torch.nn.functional.normalize(x))):
            for k in (1, 10, 300):
                same(
                    search([queries], [rows], [1.0], None, k),
                    ops.flat_search([queries], [rows], [1.0], None, k),
                )


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_flat_search_compressed_bound_is_reached(dtype: torch.dtype):
    """What quantisation lost points along the query or against it: the worst case of Cauchy-Schwarz. A bound
    that is a little too small would lose the first half of the rows."""
    x = torch.nn.functional.normalize(torch.randn(2000, 64))
    codes, bounds = ops.quantize(x, dtype)
    lost = x - codes.float() * bounds[:, :1]
    for i in range(0, 1000, 50):
        q = torch.nn.functional.normalize(lost[i : i + 1])
        same(
            ops.flat_search_compressed([q], [x], [codes], [bounds], [1.0], None, 5),
            ops.flat_search([q], [x], [1.0], None, 5),
        )
    # Rows that score the same before, and by their loss alone differ after.
    q = torch.zeros(1, 64)
    q[0, 0] = 1.0
    y = torch.zeros(3000, 64)
    y[:, 1] = 127.0
    y[:, 0] = torch.linspace(0.5001, 1.4999, 3000)[torch.randperm(3000)]
    codes, bounds = ops.quantize(y, dtype)
    same(
        ops.flat_search_compressed([q], [y], [codes], [bounds], [1.0], None, 10),
        ops.flat_search([q], [y], [1.0], None, 10),
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_flat_search_compressed_extreme_sizes(dtype: torch.dtype):
    """Numbers that overflow or underflow in the bounds, though not in the scores."""
    for size in (1e-38, 1e-30, 1e-20, 1e8, 1e11):
        for query_size in (1e-38, 1e-10, 1e10, 1e20, 1e24):
            q, x = torch.randn(3, 20) * query_size, torch.randn(2000, 20) * size
            for weight in (1.0, -1e-30, 1e13):
                expected = ops.flat_search([q], [x], [weight], None, 7)
                same(compressed(dtype, [q], [x], [weight], None, 7), expected)


def test_flat_search_compressed_reads_few_rows(one_thread: None):
    """Rows whose bound does not reach the best are not scored: their float32 values are not looked at."""
    x = torch.nn.functional.normalize(torch.randn(20_000, 64))
    q = torch.nn.functional.normalize(torch.randn(1, 64))
    expected = ops.flat_search([q], [x], [1.0], None, 10)
    for dtype in (torch.int8, torch.bfloat16):
        codes, bounds = ops.quantize(x, dtype)
        below = (x @ q[0]) < expected[0][0, -1] - 0.1
        poisoned = x.clone()
        poisoned[below] = float("nan")
        # The first rows are scored to have a best at all.
        poisoned[:2000] = x[:2000]
        same(ops.flat_search_compressed([q], [poisoned], [codes], [bounds], [1.0], None, 10), expected)


@pytest.mark.parametrize("dims", [1, 3, 8, 31, 32, 100])
@pytest.mark.parametrize("most", [1, 127])
def test_flat_search_int8_sums_of_any_size(dims: int, most: int):
    """Codes at their limits, where 16-bit sums of products are largest."""
    x = torch.full((100, dims), float(most))
    x[::3] *= -1
    x[:, 0] = 127.0
    q = torch.full((4, dims), 63.0)
    q[1] *= -1
    same(compressed(torch.int8, [q], [x], [1.0], None, 100), ops.flat_search([q], [x], [1.0], None, 100))


def test_quantize_bounds_hold(device: torch.device):
    x = torch.randn(3000, 50, device=device) * torch.logspace(-30, 10, 3000, device=device)[:, None]
    x[7] = 0
    for dtype in (torch.int8, torch.bfloat16):
        codes, bounds = ops.quantize(x, dtype)
        assert codes.dtype == dtype
        scale, residual, norm = bounds.double().unbind(1)
        kept = codes.double() * scale[:, None]
        assert (residual >= (x.double() - kept).norm(dim=1)).all()
        assert (norm >= x.double().norm(dim=1)).all()
        assert (norm >= kept.norm(dim=1)).all()
        # And they are not much too large.
        assert (residual <= (x.double() - kept).norm(dim=1) * (1 + 1e-5) + 1e-37).all()
        if dtype == torch.int8:
            assert codes.abs().max() == 127
            torch.testing.assert_close(scale.float(), torch.where(x.any(1), x.abs().amax(1) / 127, 1.0))
        else:
            assert torch.equal(codes, x.bfloat16())
            assert (scale == 1).all()
    assert ops.quantize(x[:0], torch.int8)[1].shape == (0, 3)
    assert all(map(torch.equal, ops.quantize(x.T.contiguous().T, dtype), (codes, bounds)))


def test_quantize_errors():
    x = torch.ones(4, 3)
    with pytest.raises(TypeError, match="quantize: dtype must be bfloat16 or int8, got Half"):
        ops.quantize(x, torch.float16)
    with pytest.raises(TypeError, match="quantize: rows must be Float, got Double"):
        ops.quantize(x.double(), torch.int8)
    for bad, text in ((float("nan"), "nan"), (float("inf"), "inf"), (1e20, "1e[+]20")):
        with pytest.raises(
            ValueError, match=rf"rows must hold numbers and have norms of at most 2\^40, got {text}"
        ):
            ops.quantize(torch.tensor([[1.0], [bad]]), torch.int8)
    with pytest.raises(ValueError, match=r"quantize: rows must have shape \[N, D\], got \[3\]"):
        ops.quantize(x[0], torch.int8)


def test_flat_search_layouts(device: torch.device, tmp_path: Path, search):
    q, x = torch.randn(5, 48, device=device), torch.randn(700, 48, device=device)
    expected = ops.flat_search([q], [x], [1.0], None, 9)
    same(search([q.T.contiguous().T], [x.T.contiguous().T], [1.0], None, 9), expected)
    wide = torch.randn(1400, 48, device=device)
    wide[::2] = x
    same(search([q], [wide[::2]], [1.0], None, 9), expected)
    shifted = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(700, 48)  # not aligned to 32 bytes
    same(search([q], [shifted], [1.0], None, 9), expected)
    one = x[:1].expand(700, -1)
    same(search([q], [one], [1.0], None, 9), ops.flat_search([q], [one.contiguous()], [1.0], None, 9))
    if device.type == "cpu":
        x.numpy().tofile(tmp_path / "rows")
        mapped = torch.from_numpy(np.memmap(tmp_path / "rows", np.float32, "c").reshape(700, 48))
        same(search([q], [mapped], [1.0], None, 9), expected)


def test_flat_search_errors():
    q, x = torch.ones(2, 3), torch.ones(4, 3)
    with pytest.raises(ValueError, match=r"flat_search: k must be at least 0, got -1"):
        ops.flat_search([q], [x], [1.0], None, -1)
    with pytest.raises(
        ValueError,
        match=r"flat_search: database\[0\] must have shape \[N, D\] with N of database\[0\] and D of its "
        r"queries, got \[4, 2\]",
    ):
        ops.flat_search([q], [x[:, :2]], [1.0], None, 1)
    with pytest.raises(TypeError, match=r"flat_search: queries\[0\] must be Float, got Half"):
        ops.flat_search([q.half()], [x], [1.0], None, 1)
    with pytest.raises(ValueError, match="flat_search: weights must have 2 entries like queries, got 1"):
        ops.flat_search([q, q], [x, x], [1.0], None, 1)
    with pytest.raises(ValueError, match="flat_search: database must have 1 entries like queries, got 2"):
        ops.flat_search([q], [x, x], [1.0], None, 1)
    with pytest.raises(ValueError, match="flat_search: queries must have at least one space, got none"):
        ops.flat_search([], [], [], torch.ones(4, dtype=torch.bool), 1)
    with pytest.raises(ValueError, match="flat_search: weights must be numbers of float32, got nan"):
        ops.flat_search([q], [x], [float("nan")], None, 1)
    with pytest.raises(
        ValueError, match=r"queries\[1\] must have shape \[Q, D\] with Q of queries\[0\], got \[1, 3\]"
    ):
        ops.flat_search([q, q[:1]], [x, x], [1.0, 1.0], None, 1)
    with pytest.raises(ValueError, match=r"flat_search: keep must have shape \[N\], got \[3\]"):
        ops.flat_search([q], [x], [1.0], torch.ones(3, dtype=torch.bool), 1)
    with pytest.raises(TypeError, match="flat_search: keep must be Bool, got Byte"):
        ops.flat_search([q], [x], [1.0], torch.ones(4, dtype=torch.uint8), 1)


def test_flat_search_compressed_errors():
    q, x = torch.ones(2, 3), torch.ones(4, 3)
    codes, bounds = ops.quantize(x, torch.int8)
    with pytest.raises(
        ValueError, match="flat_search_compressed: codes must have 1 entries like queries, got 0"
    ):
        ops.flat_search_compressed([q], [x], [], [bounds], [1.0], None, 1)
    with pytest.raises(ValueError, match=r"codes\[0\] must have shape \[N, D\] like database, got \[3, 3\]"):
        ops.flat_search_compressed([q], [x], [codes[:3]], [bounds], [1.0], None, 1)
    with pytest.raises(ValueError, match=r"bounds\[0\] must have shape \[N, 3\], got \[4\]"):
        ops.flat_search_compressed([q], [x], [codes], [bounds[:, 0]], [1.0], None, 1)
    with pytest.raises(TypeError, match=r"codes\[0\] must be int8 or bfloat16, got Float"):
        ops.flat_search_compressed([q], [x], [x], [bounds], [1.0], None, 1)
    wide = torch.ones(1, 65537)
    codes, bounds = ops.quantize(wide, torch.int8)
    with pytest.raises(ValueError, match=r"codes\[0\] must have at most 65536 columns of int8, got 65537"):
        ops.flat_search_compressed([wide], [wide], [codes], [bounds], [1.0], None, 1)


@pytest.mark.parametrize("count", [1, 100])
def test_flat_search_refuses_nan(count: int, device: torch.device):
    d = torch.ones(5000, 3, device=device)
    q = torch.ones(count, 3, device=device)
    clean = d.clone()
    d[4321, 1] = float("nan")
    with pytest.raises(ValueError, match="flat_search: scores must be numbers, got NaN"):
        ops.flat_search([q], [d], [1.0], None, 2)
    # A row that may not be found is not looked at.
    keep = torch.ones(5000, dtype=torch.bool, device=device)
    keep[4321] = False
    assert ops.flat_search([q], [d], [1.0], keep, 2)[1][0].tolist() == [0, 1]
    codes, bounds = ops.quantize(clean, torch.int8)
    q[-1, 0] = float("nan")
    with pytest.raises(ValueError, match="flat_search: scores must be numbers, got NaN"):
        ops.flat_search_compressed([q], [clean], [codes], [bounds], [1.0], None, 2)


@pytest.mark.parametrize("kept", [False, True])
def test_flat_search_registration(kept: bool, device: torch.device, opcheck):
    q, x = (
        [torch.randn(3, d, device=device) for d in (4, 9)],
        [torch.randn(9, d, device=device) for d in (4, 9)],
    )
    keep = torch.arange(9, device=device) < 7 if kept else None
    opcheck(torch.ops.placket.flat_search.default, q, x, [1.0, 0.5], keep, 2)
    packed = [ops.quantize(rows, torch.int8) for rows in x]
    codes, bounds = [p[0] for p in packed], [p[1] for p in packed]
    opcheck(torch.ops.placket.flat_search_compressed.default, q, x, codes, bounds, [1.0, 0.5], keep, 2)
    opcheck(torch.ops.placket.quantize.default, x[0], torch.int8)
    opcheck(torch.ops.placket.quantize.default, x[0], torch.bfloat16)


def test_flat_search_has_no_gradient():
    q = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="derivative for placket::flat_search is not implemented"):
        ops.flat_search([q], [torch.ones(2, 3)], [1.0], None, 1)[0].sum().backward()


def test_flat_search_compiles(device: torch.device):
    def top(queries: Tensor, database: Tensor) -> Hits:
        return ops.flat_search([queries], [database], [1.0], None, 3)

    compiled = torch.compile(top, fullgraph=True, dynamic=True)
    for count in (2, 5):
        q, d = torch.randn(count, 4, device=device), torch.randn(30, 4, device=device)
        same(compiled(q, d), top(q, d))


def test_flat_search_under_autocast(device: torch.device):
    q, d = torch.randn(3, 8, device=device), torch.randn(50, 8, device=device).bfloat16()
    expected = ops.flat_search([q], [d.float()], [1.0], None, 5)
    codes, bounds = ops.quantize(d.float(), torch.bfloat16)
    with torch.autocast(device.type, torch.bfloat16):
        same(ops.flat_search([q], [d], [1.0], None, 5), expected)
        same(ops.flat_search_compressed([q], [d], [codes], [bounds], [1.0], None, 5), expected)


@pytest.mark.parametrize("compress", [False, True])
def test_flat_search_cuda_kernel_on_cpu_tensors(compress: bool, whole_vectors):
    """The CUDA kernel is made of ATen calls for any device, so that its logic is tested without a GPU."""
    cpu = torch.device("cpu")
    q = [whole_vectors(9, d, cpu) for d in (5, 12)]
    x = [whole_vectors(300, d, cpu) for d in (5, 12)]
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    packed = [ops.quantize(rows, torch.int8) for rows in x]
    extra = [[p[0] for p in packed], [p[1] for p in packed]] if compress else []
    op = torch.ops.placket.flat_search_compressed if compress else torch.ops.placket.flat_search
    for keep in (None, torch.rand(300) < 0.3, torch.zeros(300, dtype=torch.bool)):
        for k in (0, 1, 40, 500):
            expected = ops.flat_search(q, x, [1.0, -0.5], keep, k)
            same(op.default.redispatch(cuda, q, x, *extra, [1.0, -0.5], keep, k), expected)
    none = [part[:0] for part in q]
    assert op.default.redispatch(cuda, none, x, *extra, [1.0, 1.0], None, 3)[1].shape == (0, 3)
    with pytest.raises(ValueError, match="flat_search: scores must be numbers, got NaN"):
        op.default.redispatch(cuda, [part.log() for part in q], x, *extra, [1.0, 1.0], None, 3)
