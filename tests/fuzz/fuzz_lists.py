"""Coverage-guided fuzzing of the list readers by Atheris, libFuzzer for Python (pip install atheris).

PYTHONPATH=tests python tests/fuzz/fuzz_lists.py LAYOUT [libFuzzer's options and folders]

LAYOUT is one of ``damaged_lists.LAYOUTS``. An input is the number of a file, a byte, and the text that takes
its place. All of the data set is then read, and what ``damaged_lists.read_all`` says must hold. The temporary
folder is left behind: libFuzzer ends the process without a word to Python.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["placket.data", "placket.schema"]):
    from fuzz.damaged_lists import LAYOUTS, read_all, restore_file


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in LAYOUTS:
        raise SystemExit(f"layout must be one of {', '.join(LAYOUTS)}, got {sys.argv[1:2]}")
    layout = LAYOUTS[sys.argv.pop(1)]
    names = list(layout.files)
    folder = Path(tempfile.mkdtemp())
    data, seeds = folder / "data", folder / "seeds"
    place = layout.write(data)
    seeds.mkdir()
    for number, name in enumerate(names):
        (seeds / str(number)).write_bytes(bytes([number]) + layout.files[name].encode())

    def test_one_input(text: bytes) -> None:
        name = names[text[0] % len(names)] if text else names[0]
        (data / name).write_bytes(text[1:])
        read_all(place, verify=False)  # which takes half of the time
        restore_file(data / name, layout.files[name])

    atheris.Setup([*sys.argv, os.fspath(seeds)], test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
