"""Load 10,000 batches of real photographs and print the memory in use on the way; exit 1 where it grows."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from photographs import folder

import placket.data
from placket.data import Loader, Preprocess

# What the heap's fragments may take up after the first hundred batches; a leaked batch of 48 inputs of 64
# pixels would be 2.4 MB, a leaked picture 0.2 MB.
TOLERANCE_MB = 16


def resident_mb() -> float:
    """Memory of this process now, by Linux's count."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("batches", nargs="?", type=int, default=10_000)
    batches = parser.parse_args().batches
    split = placket.data.open(folder("deepfashion-fine6")).split("train")
    loader = Loader(split, sampler="triplets", batch=16, preprocess=Preprocess(size=64), threads=2)
    at = {100: 0.0, 1_000: 0.0, batches: 0.0}
    done = 0
    while done < batches:
        for _ in loader:
            done += 1
            if done in at:
                at[done] = resident_mb()
                print(f"after {done} batches: {at[done]:.1f} MB", flush=True)
            if done == batches:
                break
    return int(at[batches] > at[100] + TOLERANCE_MB)


if __name__ == "__main__":
    sys.exit(main())
