"""Stores: packing, reading, and what a crash or a damaged byte does."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import placket.data
from placket import _C
from placket.data import Dataset, DatasetError, Loader, Preprocess, garments

SMALL = Preprocess(size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("garments")
    garments.generate(path, items=60, size=96, seed=3)
    return path


def same(a: Dataset, b: Dataset) -> None:
    """Everything but where the images lie."""
    assert (a.schema, a.splits) == (b.schema, b.splits)
    for name in a.splits:
        one, other = a.split(name), b.split(name)
        assert one.filenames == other.filenames
        for column in ("boxes", "queries", "candidates", "identities", "domains"):
            np.testing.assert_array_equal(getattr(one, column), getattr(other, column))
        assert [one.labels[i] for i in range(len(one))] == [other.labels[i] for i in range(len(other))]
        assert a.captions(name) == b.captions(name)
        np.testing.assert_array_equal(a.regions(name), b.regions(name))


def test_a_store_holds_what_the_folder_holds(folder: Path, tmp_path: Path) -> None:
    data = placket.data.open(folder)
    seen: list[tuple[int, int]] = []
    placket.data.pack(data, tmp_path / "set.store", progress=lambda done, count: seen.append((done, count)))
    assert seen == [(i + 1, len(data)) for i in range(len(data))]
    assert sorted(os.listdir(tmp_path)) == ["set.store"]
    packed = placket.data.open(tmp_path / "set.store")
    same(data, packed)
    loose, mapped = (Loader(d.split("train"), preprocess=SMALL, batch=8) for d in (data, packed))
    for one, other in zip(loose, mapped, strict=True):
        assert torch.equal(one.images, other.images)
    assert placket.data.verify(packed).ok
    path = packed.split("test").paths[1]
    assert path == f"{tmp_path}/set.store/{packed.split('test').filenames[1]}"
    np.testing.assert_array_equal(
        placket.data.read_image(path), placket.data.read_image(data.split("test").paths[1])
    )
    with pytest.raises(RuntimeError, match=r"none\.jpg: .*set\.store must hold the image"):
        placket.data.read_image(tmp_path / "set.store/none.jpg")
    with pytest.raises(DatasetError, match="must be loose files to be packed, got a store"):
        placket.data.pack(packed, tmp_path / "again.store")


def test_pixels_are_made_smaller_with_their_boxes(folder: Path, tmp_path: Path) -> None:
    data = placket.data.open(folder)
    packed = placket.data.pack(data, tmp_path / "set.store", size=40)
    train, small = data.split("train"), packed.split("train")
    assert train.boxes is not None
    assert small.boxes is not None
    pixels = small.image_list().decode(0)
    with Image.open(train.paths[0]) as image:
        width, height = image.size
        by_pillow = image.convert("RGB").resize((40, 40 * height // width), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels, np.asarray(by_pillow))
    x0, y0, x1, y1 = train.boxes[0].tolist()
    scaled = [x0 * 40 // width, y0 * 40 // width, -(-x1 * 40 // width), -(-y1 * 40 // width)]
    assert small.boxes[0].tolist() == scaled
    regions, small_regions = data.regions("train"), packed.regions("train")
    assert regions is not None
    assert small_regions is not None
    ratio = small_regions[:, 2:] / regions[:, 2:].clip(1)
    assert np.all(np.abs(ratio - 40 / width) * regions[:, 2:] <= 1)
    batch = next(iter(Loader(small, preprocess=SMALL, batch=8)))
    assert batch.images.shape == (8, 3, 32, 32)
    with pytest.raises(RuntimeError, match=r"jpg: orientation .* must be 'apply'.*packed, got 'ignore'"):
        next(iter(Loader(small, preprocess=Preprocess(size=32, orientation="ignore"), batch=8)))


def test_pictures_are_not_made_larger(folder: Path, tmp_path: Path) -> None:
    data = placket.data.open(folder)
    packed = placket.data.pack(data, tmp_path / "set.store", size=500)
    for image in (0, 7):
        whole = placket.data.read_image(data.split("train").paths[image])
        np.testing.assert_array_equal(packed.split("train").image_list().decode(image), whole)
    np.testing.assert_array_equal(packed.split("train").boxes, data.split("train").boxes)


def test_pixels_keep_the_orientation_they_are_packed_with(tmp_path: Path) -> None:
    (tmp_path / "set/a").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "set/a/1.png", exif=exif)
    data = placket.data.open(tmp_path / "set")
    for orientation, expected in (("apply", np.rot90(pixels, -1)), ("ignore", pixels)):
        packed = placket.data.pack(data, tmp_path / orientation, size=20, orientation=orientation)  # type: ignore[arg-type]
        np.testing.assert_array_equal(placket.data.read_image(packed.split("train").paths[0]), expected)


def test_an_image_of_two_splits_is_there_once(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "set/a.png")
    (tmp_path / "set/meta.json").write_text('{"set": {"ATTRIBUTES": ["c"], "ATTRIBUTES_NUM": {"c": 2}}}')
    for split in ("train", "test"):
        (tmp_path / f"set/filenames_{split}.txt").write_text("a.png\n")
    packed = placket.data.pack(placket.data.open(tmp_path / "set"), tmp_path / "set.store")
    assert len(packed.store) == 1
    assert len(packed) == 2


def test_a_missing_or_damaged_image_stops_packing(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    garments.generate(copy, items=50, size=32, seed=3)
    data = placket.data.open(copy)
    victim = Path(data.split("train").paths[2])
    victim.write_bytes(victim.read_bytes()[:-200])
    with pytest.raises(RuntimeError, match=rf"{victim.name}: damaged JPEG"):
        placket.data.pack(data, tmp_path / "pixels.store", size=16)
    victim.unlink()
    with pytest.raises(RuntimeError, match=rf"{victim.name}: No such file"):
        placket.data.pack(data, tmp_path / "files.store")
    assert not (tmp_path / "pixels.store").exists()
    with pytest.raises(ValueError, match="size must be positive, got 0"):
        placket.data.pack(data, tmp_path / "files.store", size=0)


def is_whole(store: Path) -> bool:
    try:
        return placket.data.verify(store).ok
    except DatasetError:
        return False


def test_every_damaged_byte_is_found(tmp_path: Path) -> None:
    garments.generate(tmp_path / "set", items=50, size=32, seed=3)
    store = tmp_path / "set.store"
    placket.data.pack(placket.data.open(tmp_path / "set"), store)
    good = store.read_bytes()
    index, records, *_ = struct.unpack("<4Q", good[-64:-32])
    # Between the images are their records' own copies of the index, which only packing reads, and padding.
    between = set(range(64, index))
    for record in range(records):
        offset, length = struct.unpack_from("<2Q", good, index + 40 * record)
        between -= set(range(offset, offset + length))
    for place in np.linspace(0, len(good) - 1, 300).astype(int).tolist():
        store.write_bytes(good[:place] + bytes([good[place] ^ 0x20]) + good[place + 1 :])
        assert is_whole(store) == (place in between), place
    for length in [*range(0, 130, 7), *range(len(good) - 130, len(good), 7)]:
        store.write_bytes(good[:length])
        with pytest.raises(DatasetError):
            placket.data.open(store)


KILLED = """
import os, sys, time
import placket.data
def slow(done, count):
    print(done, flush=True)
    time.sleep(0.02)
placket.data.pack(placket.data.open(sys.argv[1]), sys.argv[2], progress=slow)
"""


def test_a_killed_pack_is_gone_on_with(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "set.store"
    whole = placket.data.pack(placket.data.open(folder), tmp_path / "whole.store")
    done = 0
    for wanted in (5, 20):
        command = [sys.executable, "-c", KILLED, str(folder), str(store)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                assert int(line) > done
                if int(line) >= wanted:
                    process.send_signal(signal.SIGKILL)
                    break
        assert not store.exists()
        assert (tmp_path / "set.store.partial").exists()
        done = wanted - 1  # the one that was told of is whole
    with pytest.raises(DatasetError):
        _ = placket.data.open(tmp_path / "set.store.partial")
    first: list[int] = []
    placket.data.pack(placket.data.open(folder), store, progress=lambda done, count: first.append(done))
    assert first[0] > done
    assert store.read_bytes() == (tmp_path / "whole.store").read_bytes()
    assert len(whole) == first[-1]


def test_a_partial_store_of_others_is_refused(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "set.store"
    writer = _C.StoreWriter(str(store), _C.StoreKind.FILES, b"0" * 16)
    with pytest.raises(RuntimeError, match=r"set\.store\.partial: another process is writing it"):
        placket.data.pack(placket.data.open(folder), store)
    del writer
    with pytest.raises(RuntimeError, match=r"set\.store\.partial: file must have been begun from the same"):
        placket.data.pack(placket.data.open(folder), store)


def test_images_that_change_between_two_calls_are_refused(tmp_path: Path) -> None:
    """The store would hold some as they were and some as they are."""
    garments.generate(tmp_path / "set", items=50, size=32, seed=3)
    data = placket.data.open(tmp_path / "set")
    last = Path(data.split("test").paths[-1])
    good = last.read_bytes()
    last.write_bytes(good[:-100])
    with pytest.raises(RuntimeError, match=f"{last.name}: damaged JPEG"):
        placket.data.pack(data, tmp_path / "set.store", size=16)
    last.write_bytes(good)
    with pytest.raises(RuntimeError, match="begun from the same images"):
        placket.data.pack(data, tmp_path / "set.store", size=16)
    (tmp_path / "set.store.partial").unlink()
    assert len(placket.data.pack(data, tmp_path / "set.store", size=16)) == len(data)


FULL = """
import resource, sys
import placket.data
data = placket.data.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
placket.data.pack(data, sys.argv[2])
"""


def test_a_full_disk_is_named_and_gone_on_from(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "set.store"
    command = [sys.executable, "-c", FULL, str(folder), str(store)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "RuntimeError" in found.stderr
    assert "set.store.partial: File too large" in found.stderr
    first: list[int] = []
    data = placket.data.open(folder)
    placket.data.pack(data, store, progress=lambda done, count: first.append(done))
    assert first[0] > 1
    same(data, placket.data.open(store))
