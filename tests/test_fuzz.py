"""The sanitized programs of tests/fuzz, built and run for as long as a test may take (make fuzz: longer)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fuzz.seeds import write_seeds
from placket import _build

ROOT = Path(__file__).parents[1]
PROGRAMS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _build.JPEG, reason="built without libjpeg-turbo"),
]


@pytest.fixture(scope="session")
def programs() -> Path:
    """Build the programs, which need no torch, and return their folder."""
    cmake = shutil.which("cmake", path=PROGRAMS)
    if cmake is None:
        pytest.skip("no cmake")
    build = ROOT / "build" / "fuzz" / "test-programs"
    subprocess.run([cmake, "-S", ROOT / "tests" / "fuzz", "-B", build], check=True)
    targets = ["mutated_jpegs", "mutated_stores"]
    subprocess.run([cmake, "--build", build, "-j", "2", "--target", *targets], check=True)
    return build


def run(folder: Path, *command: str | os.PathLike[str]) -> dict[str, Any]:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def check_jpegs(outcome: dict[str, Any], count: int) -> None:
    assert outcome["mutants"] == count == outcome["decoded"] + outcome["refused"]
    assert count / 100 < outcome["decoded"] < outcome["refused"]
    assert outcome["too_large"] >= count // 16  # every sixteenth claims 60,000 x 60,000 pixels
    assert outcome["peak_heap_bytes_of_too_large"] < 128 * 1024  # the decoder itself, and the EXIF block


def test_mutated_jpegs_give_an_image_or_an_error(programs: Path, tmp_path: Path) -> None:
    outcome = run(tmp_path, programs / "mutated_jpegs", "2000", *write_seeds(tmp_path / "seeds"))
    check_jpegs(outcome, 2000)
    assert outcome["causes"] > 20


@pytest.mark.data
def test_mutated_photographs_give_an_image_or_an_error(
    programs: Path, tmp_path: Path, photographs: Path
) -> None:
    files = sorted(photographs.glob("*/**/*.jpg"))
    small = [file for file in files[:: len(files) // 60] if file.stat().st_size < 40_000]
    assert len(small) >= 20
    check_jpegs(run(tmp_path, programs / "mutated_jpegs", "1000", *small), 1000)


def test_what_fails_ends_the_program_and_is_kept(programs: Path, tmp_path: Path) -> None:
    seed = write_seeds(tmp_path / "seeds")[0]
    seed.write_bytes(seed.read_bytes()[:-2])
    command = [programs / "mutated_jpegs", "9", seed]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "requirement failed: seed is a whole JPEG file" in done.stderr
    assert (tmp_path / "mutant-0.jpg").read_bytes() == seed.read_bytes()


def test_mutated_stores_are_read_or_refused(programs: Path, tmp_path: Path) -> None:
    outcome = run(tmp_path, programs / "mutated_stores", "2000", tmp_path / "seeds")
    assert outcome["mutants"] == 2000 == outcome["read"] + outcome["refused"]
    assert 200 < outcome["read"] < outcome["refused"]
    assert 200 < outcome["resumed"] < 2000
    assert outcome["records_kept"] > 200
