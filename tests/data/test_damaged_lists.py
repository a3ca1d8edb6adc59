from __future__ import annotations

import io
import random
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import placket.data
from fuzz.damaged_lists import LAYOUTS, LISTED, damage, damage_file, read_all, restore_file
from placket import _C


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
@pytest.mark.parametrize("layout", LISTED)
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
    assert read >= 15  # most damage to JSON ends its reading
    assert refused >= 125


def damage_column(column: NDArray[Any], others: list[NDArray[Any]], choice: random.Random) -> NDArray[Any]:
    """Return another column: with other numbers, of another length, shape or type, or one of the others."""
    kind = choice.randrange(7)
    if kind <= 2 and column.size:
        changed = column.astype(np.int64)
        changed.flat[choice.randrange(column.size)] = choice.choice((-2, -1, 0, 1, 7, 255, 2**31, 2**40))
        return changed
    if kind == 3:
        return np.concatenate([column, column[:1]])
    if kind == 4:
        return column[: choice.randrange(len(column) + 1)]
    if kind == 5:
        return choice.choice(
            (column.astype(str), column * 0.5, column[..., None], np.array(3), column.astype("u8"))
        )
    return choice.choice(others)


@pytest.mark.usefixtures("bounded_memory")
def test_damaged_lists_of_a_store_are_read_or_refused(tmp_path: Path) -> None:
    """The checksums are right each time, as if another program had packed it."""
    layout = LAYOUTS["asen"]
    place = layout.write(tmp_path)
    names = [f"img/{i}.jpg" for i in (0, 1, 2, 3, 6, 7, 8)]
    (place / "img").mkdir()
    for name in names:
        (place / name).write_bytes(b"no image")
    store = placket.data.pack(placket.data.open(place), tmp_path / "whole.store").store
    whole = dict(np.load(io.BytesIO(store.metadata)))
    read = refused = 0
    for number in range(200):
        choice = random.Random(f"store {number}")
        columns = dict(whole)
        column = choice.choice(list(columns))
        if column == "header":
            columns[column] = np.frombuffer(damage(columns[column].tobytes(), choice), dtype=np.uint8)
        elif choice.randrange(8) == 0:
            del columns[column]
        else:
            columns[column] = damage_column(columns[column], list(whole.values()), choice)
        buffer = io.BytesIO()
        np.savez(buffer, **columns)
        metadata = buffer.getvalue() if choice.randrange(10) else damage(buffer.getvalue(), choice)
        writer = _C.StoreWriter(str(tmp_path / "set.store"), _C.StoreKind.FILES, bytes(16))
        for _ in names:
            writer.append_file(b"no image")
        writer.finish(metadata)
        try:
            good = read_all(tmp_path / "set.store")
        except Exception as error:
            raise AssertionError(f"mutant {number} of {column}: {error!r}") from error
        read, refused = read + good, refused + (not good)
    assert read >= 20
    assert refused >= 100
