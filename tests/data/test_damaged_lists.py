from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.damaged_lists import LAYOUTS, damage_file, read_all, restore_file


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """A list that claims more than it holds ends in MemoryError here, and not the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_lists_are_good(tmp_path: Path, layout: str) -> None:
    assert read_all(LAYOUTS[layout].write(tmp_path))


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_lists_are_read_or_refused(tmp_path: Path, layout: str) -> None:
    whole = LAYOUTS[layout]
    place = whole.write(tmp_path)
    read = refused = 0
    for number in range(250):
        choice = random.Random(f"{layout} {number}")
        name = choice.choice(list(whole.files))
        damage_file(tmp_path / name, choice)
        try:
            good = read_all(place)
        except Exception as error:
            raise AssertionError(f"mutant {number} of {name}: {error!r}") from error
        read, refused = read + good, refused + (not good)
        restore_file(tmp_path / name, whole.files[name])
    assert read >= 25
    assert refused >= 125 or layout == "folders"  # which has no lists: any file is an image
