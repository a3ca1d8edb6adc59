from __future__ import annotations

import pytest
import torch

from placket import ops, reference


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 7, 2), (5, 1500, 9), (70, 33, 20), (0, 4, 3), (200, 1030, 8), (2, 9000, 3)]
)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_flat_search_matches_reference(shape, share, device, whole_vectors):
    count, length, dims = shape
    q, d = whole_vectors(count, dims, device), whole_vectors(length, dims, device)
    k = round(length * share)
    scores, rows = ops.flat_search(q, d, k)
    expected_scores, expected_rows = reference.flat_search(q, d, k)
    assert torch.equal(scores, expected_scores)
    assert torch.equal(rows, expected_rows)


def test_flat_search_by_hand(device: torch.device):
    database = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, -1.0]], device=device)
    scores, rows = ops.flat_search(torch.tensor([[2.0, 1.0], [0.0, -0.0]], device=device), database, 3)
    assert rows.tolist() == [[0, 2, 1], [0, 1, 2]]
    assert scores.tolist() == [[2.0, 2.0, 1.0], [0.0, 0.0, 0.0]]


def test_flat_search_infinite_scores(device: torch.device):
    database = torch.tensor([[-float("inf")], [1.0], [float("inf")], [-float("inf")]], device=device)
    scores, rows = ops.flat_search(torch.ones(1, 1, device=device), database, 4)
    assert rows.tolist() == [[2, 1, 0, 3]]
    assert scores[0].tolist() == [float("inf"), 1.0, -float("inf"), -float("inf")]


def test_flat_search_does_not_depend_on_threads_or_company(by_threads):
    q, d = torch.randn(150, 37), torch.randn(9001, 37)
    d[4000:] = d[torch.arange(5001) % 4000]  # twins, far apart
    expected = ops.flat_search(q, d, 20)
    for got in by_threads(lambda: ops.flat_search(q, d, 20)):
        assert all(map(torch.equal, got, expected))
    for few in (1, 3, 63, 64, 65):
        for got in by_threads(lambda few=few: ops.flat_search(q[:few], d, 20)):
            assert torch.equal(got[0], expected[0][:few])
            assert torch.equal(got[1], expected[1][:few])


def test_flat_search_errors():
    q, d = torch.ones(2, 3), torch.ones(4, 3)
    with pytest.raises(
        ValueError, match=r"flat_search: k must be between 0 and the 4 rows of database, got 5"
    ):
        ops.flat_search(q, d, 5)
    with pytest.raises(ValueError, match=r"flat_search: k must be .* got -1"):
        ops.flat_search(q, d, -1)
    with pytest.raises(
        ValueError, match=r"flat_search: database must have shape \[N, D\] with D of queries, got \[4, 2\]"
    ):
        ops.flat_search(q, d[:, :2], 1)
    with pytest.raises(TypeError, match="flat_search: queries must be Float, got Half"):
        ops.flat_search(q.half(), d, 1)


@pytest.mark.parametrize("count", [1, 100])
def test_flat_search_refuses_nan(count: int, device: torch.device):
    d = torch.ones(5000, 3, device=device)
    d[4321, 1] = float("nan")
    with pytest.raises(ValueError, match="flat_search: scores must be numbers, got NaN"):
        ops.flat_search(torch.ones(count, 3, device=device), d, 2)


def test_flat_search_registration(device: torch.device, opcheck):
    opcheck(
        torch.ops.placket.flat_search.default,
        torch.randn(3, 4, device=device),
        torch.randn(9, 4, device=device),
        2,
    )


def test_flat_search_has_no_gradient():
    q = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="derivative for placket::flat_search is not implemented"):
        ops.flat_search(q, torch.ones(2, 3), 1)[0].sum().backward()


def test_flat_search_compiles(device: torch.device):
    compiled = torch.compile(ops.flat_search, fullgraph=True, dynamic=True)
    for count in (2, 5):
        q, d = torch.randn(count, 4, device=device), torch.randn(30, 4, device=device)
        assert all(map(torch.equal, compiled(q, d, 3), ops.flat_search(q, d, 3)))


def test_flat_search_under_autocast(device: torch.device):
    q, d = torch.randn(3, 8, device=device), torch.randn(50, 8, device=device)
    expected = ops.flat_search(q, d.bfloat16().float(), 5)
    with torch.autocast(device.type, torch.bfloat16):
        assert all(map(torch.equal, ops.flat_search(q, d.bfloat16(), 5), expected))


def test_flat_search_cuda_kernel_on_cpu_tensors(whole_vectors):
    """The CUDA kernel is made of ATen calls for any device, so that its logic is tested without a GPU."""
    q, d = whole_vectors(9, 5, torch.device("cpu")), whole_vectors(300, 5, torch.device("cpu"))
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    op = torch.ops.placket.flat_search.default
    for k in (0, 1, 300):
        assert all(map(torch.equal, op.redispatch(cuda, q, d, k), ops.flat_search(q, d, k)))
    assert op.redispatch(cuda, q[:0], d, 3)[1].shape == (0, 3)
    with pytest.raises(ValueError, match="flat_search: scores must be numbers, got NaN"):
        op.redispatch(cuda, q.log(), d, 3)
