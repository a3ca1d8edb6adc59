"""Exact search (performance.md 4.2, row C9) against faiss-cpu's IndexFlatIP, which scores float32 rows.

The floor is the time to read the rows once at the bandwidth that the machine reads a large buffer with, and
for 256 queries of float32 that of the multiply-adds at the rate of a large matrix product, whichever is
longer. Rows are unit vectors around centres, as embeddings of garments are; uniform ones, without any
structure, are the hardest for the bounds of compressed rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from paired import Record, compare
from torch import Tensor

from placket import ops

K = 10
SHAPES = [(length, dims) for dims in (128, 1024) for length in (10_000, 100_000, 1_000_000)]
BATCHES = (1, 256)
CENTRES = 500


def vectors(count: int, dims: int, uniform: bool, random: torch.Generator) -> Tensor:
    """Unit rows, made in place so that a large database exists once."""
    rows = torch.randn(count, dims, generator=random)
    if not uniform:
        centres = torch.randn(CENTRES, dims, generator=torch.Generator().manual_seed(1))
        for part in rows.split(65_536):
            part += 1.5 * centres[torch.randint(CENTRES, (len(part),), generator=random)]
    return F.normalize(rows, dim=1, out=rows)


def bandwidth() -> float:
    """Bytes a second of reading a buffer that no cache holds."""
    buffer = torch.ones(1 << 28)
    best = min(_seconds(buffer.sum) for _ in range(5))
    return buffer.nbytes / best


def multiply_adds() -> float:
    """Multiply-adds a second of a matrix product in float32."""
    a, b = torch.ones(2048, 2048), torch.ones(2048, 2048)
    best = min(_seconds(partial(torch.mm, a, b)) for _ in range(5))
    return 2048**3 / best


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def same_scores(ours: tuple[Tensor, ...], theirs: tuple[np.ndarray, np.ndarray]) -> None:
    """faiss adds in another order; rows whose scores differ in their last bits may change places."""
    torch.testing.assert_close(torch.from_numpy(theirs[0]), ours[0], atol=1e-5, rtol=0)
    recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(ours[1].numpy(), theirs[1], strict=True)])
    assert recall >= 0.999, f"recall {recall}"


def run() -> Iterator[Record]:
    faiss.omp_set_num_threads(torch.get_num_threads())
    read, product = bandwidth(), multiply_adds()
    print(f"this machine reads {read / 1e9:.1f} GB/s and multiplies {2 * product / 1e9:.0f} GFLOP/s")
    for length, dims in SHAPES:
        for uniform in (False, True):
            yield from run_shape(length, dims, uniform, read, product)


def run_shape(length: int, dims: int, uniform: bool, read: float, product: float) -> Iterator[Record]:
    """Compare on one database, which is gone before the next is made: the largest take half of 24 GB."""
    random = torch.Generator().manual_seed(0)
    database = vectors(length, dims, uniform, random)
    index = faiss.IndexFlatIP(dims)
    for part in database.split(65_536):
        index.add(part.numpy())
    forms = {"float32": None} | {
        str(dtype).removeprefix("torch."): ops.quantize(database, dtype)
        for dtype in (torch.bfloat16, torch.int8)
    }
    for batch in BATCHES:
        q = vectors(batch, dims, uniform, random)
        exact = ops.flat_search([q], [database], [1.0], None, K)
        for form, packed in forms.items():
            if packed is None:
                ours = partial(ops.flat_search, [q], [database], [1.0], None, K)
                size = database.nbytes
            else:
                codes, bounds = [packed[0]], [packed[1]]
                ours = partial(ops.flat_search_compressed, [q], [database], codes, bounds, [1.0], None, K)
                size = packed[0].nbytes + packed[1].nbytes
                assert all(map(torch.equal, ours(), exact)), "compressed rows have other hits"
            floor = max(size / read, batch * length * dims / product if packed is None else 0)
            kind = "uniform" if uniform else "clustered"
            title = f"flat_search, {length} x {dims} {kind} {form}, {batch} queries"
            pairs = 21 if length * dims * batch < 1e10 else 5
            peers = {f"faiss {version('faiss-cpu')}": partial(index.search, q.numpy(), K)}
            yield compare(title, ours, peers, pairs, same_scores, 1e3 * floor)


if __name__ == "__main__":
    list(run())
