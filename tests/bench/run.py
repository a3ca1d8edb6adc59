"""Run every benchmark of this folder and keep its records in results/<machine>/<benchmark>.json."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from pathlib import Path

from paired import device_name
from photographs import NoPhotographs

HERE = Path(__file__).parent


def main() -> None:
    names = sorted(path.stem for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "benchmarks", nargs="*", default=names, help="such as bench_attention_pool; all by default"
    )
    chosen = parser.parse_args().benchmarks
    unknown = sorted(set(chosen) - set(names))
    if unknown:
        parser.error(f"benchmarks must be among {names}, got {unknown}")
    folder = HERE / "results" / re.sub(r"\W+", "-", device_name()).strip("-").lower()
    folder.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        records = []
        try:
            for record in importlib.import_module(name).run():
                records.append(record)
                (folder / f"{name}.json").write_text(json.dumps(records, indent=1) + "\n")
        except NoPhotographs as absent:
            print(f"{name}: left out: {absent}")


if __name__ == "__main__":
    main()
