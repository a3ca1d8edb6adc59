"""Build an index of a million items, open it, and search it beside what reading its bytes costs.

Exit 1 where opening takes 100 ms or more. Needs items x spaces x dim x 4.1 bytes of disk, half of it again
with the storage bfloat16, a quarter with int8.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import torch

from placket import AttributeIndex
from placket.index import parse

BLOCK = 50_000
CONDITIONS = (
    None,
    "domain = 'shop'",
    "price < 500 and labels.neckline has 'v'",
    "price = 7 or labels.colour has 'red' and price in (11, 12, 13)",
)
T = TypeVar("T")


def timed(name: str, call: Callable[[], T], times: int = 1) -> tuple[T, float]:
    """Print and return the median in seconds, with the last result."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - begin)
    print(f"{name}: {1e3 * median(seconds):.1f} ms", flush=True)
    return result, median(seconds)


def build(folder: Path, items: int, spaces: dict[str, int], storage: str) -> None:
    random = np.random.default_rng(0)
    with AttributeIndex.create(folder, spaces, storage=storage) as index:
        for begin in range(0, items, BLOCK):
            numbers = range(begin, min(begin + BLOCK, items))
            rows = {n: random.standard_normal((len(numbers), d), np.float32) for n, d in spaces.items()}
            index.add([f"img/{i:08d}.jpg" for i in numbers], rows, [described(i) for i in numbers])
            index.save()


def described(i: int) -> dict[str, object]:
    colours = ["red"] if i % 10 == 0 else ["blue", "white"]
    return {
        "path": f"/data/shop/img/{i:08d}.jpg",
        "price": i % 1000,
        "domain": "shop" if i % 2 else "consumer",
        "labels": {"neckline": [("v", "round", "boat", "crew")[i % 4]], "colour": colours},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--spaces", type=int, default=8)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--storage", default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    spaces = {f"space{i}": given.dim for i in range(given.spaces)}
    queries = {name: np.random.default_rng(1).standard_normal(given.dim) for name in spaces}
    weights = {name: 0.5 + i for i, name in enumerate(spaces)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        timed("build", lambda: build(path, given.items, spaces, given.storage))
        print(f"  most memory while building: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB")
        with AttributeIndex.load(path, read_only=True) as first:
            print(f"  {first.info()['segments']} segments, {first.info()['bytes'] / 1e9:.2f} GB")
        index, opening = timed("open", lambda: AttributeIndex.load(path, read_only=True), 5)
        timed("first search, which checks every byte it reads", lambda: index.search(queries, weights))
        for where in CONDITIONS:
            search = partial(index.search, queries, weights, 10, where)
            found, _ = timed(f"search where {where}", search, 9)
            if where is not None:
                masks = [s.select(parse(where)) for s in index._engine.segments]
                kept = sum(int(mask.sum()) for mask in masks) / given.items
                print(f"  {100 * kept:.2f} % of the items fulfil it, {len(found)} hits")
        array = "rows" if given.storage == "float32" else "codes"
        read = [torch.from_numpy(s.vectors[n].array(array)) for s in index._engine.segments for n in spaces]
        # Sums of float32 run at the speed of the memory; what these bytes mean is nothing to them.
        words = [part.view(torch.uint8).flatten().view(torch.float32) for part in read]
        size = sum(word.nbytes for word in words) / 1e9
        timed(f"reading the {size:.2f} GB once", lambda: [word.sum() for word in words], 9)
    return int(opening >= 0.1)


if __name__ == "__main__":
    sys.exit(main())
