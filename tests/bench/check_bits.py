"""Compare 3,000 real photographs with Pillow in every bit; exit 1 where they differ.

Decoding may differ by one grey level where Pillow's libjpeg is of another version; how often is printed.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

from PIL import features

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from real_bits import compare_with_pillow, evenly

DATA = Path(os.environ.get("PLACKET_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
COUNTS = {"deepfashion-fine6": 1097, "hm": 1097, "co-parsing/photos": 806}


def main() -> int:
    print(f"Pillow's libjpeg-turbo: {features.version('libjpeg_turbo')}")
    failed = False
    for name, count in COUNTS.items():
        found = [compare_with_pillow(path) for path in evenly(DATA / name, count)]
        decoded = Counter(difference.decoded for difference in found)
        inputs, unequal = (sum(d[i] for d in found) for i in (1, 2))
        print(
            f"{name}: {count} photographs, decoded equal {decoded[0]}, one grey level off {decoded[1]}, "
            f"more {count - decoded[0] - decoded[1]}; {inputs} inputs, unequal {unequal}",
            flush=True,
        )
        failed |= max(decoded) > 1 or unequal > 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
