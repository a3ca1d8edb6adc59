"""Batches made of pixels that stay on a device: of the same bits as those that the loader's threads make."""

from __future__ import annotations

import gc
import itertools
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_loader import take

import placket.data
from placket import _C
from placket.data import (
    Augment,
    ColorJitter,
    DatasetError,
    GaussianBlur,
    Loader,
    Preprocess,
    RandomCrop,
    RandomErasing,
    Split,
    resident,
)
from placket.data.store import StoreDataset

SMALL = Preprocess(size=16, box_margin=0.1)
MOVES = Augment(flip=0.5, crop_scale=0.3, random_crop=RandomCrop(7))


@pytest.fixture
def packed(layout: Path, tmp_path: Path) -> StoreDataset:
    return placket.data.pack(placket.data.open(layout), tmp_path / "set.store", size=24)


def assert_same(split: Split, device: torch.device, batches: int = 9, **options: Any) -> None:
    """Images and pictures lie on the device, all else on the CPU, and no bit differs."""
    expected = take(Loader(split, **options), batches)
    found = take(Loader(split, **options, resident=device), batches)
    places = [device.type, "cpu", "cpu", "cpu", *([device.type] * 3 if options.get("keep_pixels") else [])]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[0].is_contiguous(memory_format=torch.channels_last)
        assert [tensor.device.type for tensor in ours[: len(places)]] == places
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize("sampler", ["images", "triplets"])
@pytest.mark.parametrize("fit", ["crop", "pad", "target_pad", "squash"])
@pytest.mark.parametrize("augment", [Augment(), Augment(flip=1.0), MOVES], ids=["plain", "flip", "moves"])
def test_every_bit_is_the_loader_s(
    packed: StoreDataset, device: torch.device, sampler: Any, fit: str, augment: Augment
) -> None:
    assert_same(
        packed.split("train"),
        device,
        sampler=sampler,
        batch=3,
        triplets=9,
        preprocess=Preprocess(size=16, fit=fit, box_margin=0.2, target_ratio=1.1),
        augment=augment,
        keep_pixels=True,
        seed=5,
    )


def test_other_samplers_ranks_and_sizes(packed: StoreDataset, device: torch.device) -> None:
    train = packed.split("train")
    assert_same(train, device, sampler="classes", batch=4, images_of_class=2, augment=MOVES)  # 224 pixels
    for rank in range(2):
        assert_same(train, device, batch=4, rank=rank, world_size=2, preprocess=SMALL, augment=MOVES)
    # The last batch of rank 0 is empty.
    options = {"batch": 5, "drop_last": False, "world_size": 5, "keep_pixels": True, "preprocess": SMALL}
    assert_same(train, device, rank=0, **options)
    assert_same(packed.split("test"), device, batch=3, shuffle=False, preprocess=SMALL)


def test_upright_and_stored_pixels(tmp_path: Path, device: torch.device) -> None:
    (tmp_path / "set/a").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "set/a/1.png", exif=exif)
    data = placket.data.open(tmp_path / "set")
    orientations: tuple[Any, Any] = ("apply", "ignore")
    for orientation, other in itertools.permutations(orientations):
        packed = placket.data.pack(data, tmp_path / orientation, size=20, orientation=orientation)
        train = packed.split("train")
        options = {"batch": 1, "keep_pixels": True}
        assert_same(train, device, preprocess=Preprocess(size=16, orientation=orientation), **options)
        with pytest.raises(ValueError, match=f"orientation must be '{orientation}', with .*, got '{other}'"):
            Loader(train, preprocess=Preprocess(size=16, orientation=other), resident=device, **options)


def test_state_and_epochs(packed: StoreDataset) -> None:
    def loader() -> Loader:
        return Loader(packed.split("train"), batch=2, preprocess=SMALL, augment=MOVES, resident="cpu")

    expected = [batch[0] for batch in take(loader(), 9)]
    broken_off = loader()
    next(batches := iter(broken_off))
    next(batches)
    resumed = loader()
    resumed.load_state_dict(broken_off.state_dict())
    for found, want in zip(take(resumed, 7), expected[2:], strict=True):
        assert torch.equal(found[0], want)
    resumed.set_epoch(1)
    assert torch.equal(next(iter(resumed)).images, expected[3])


def test_pixels_are_copied_once_and_go_with_the_data_set(layout: Path, tmp_path: Path) -> None:
    packed = placket.data.pack(placket.data.open(layout), tmp_path / "set.store", size=24)
    splits = [packed.split(name) for name in packed.splits]
    kept = [resident.resident_pixels(split, device) for split in splits for device in ("cpu", "cpu")]
    assert all(pixels is kept[0] for pixels in kept)
    joined = [split.image_list().decode(i).ravel() for split in splits for i in range(len(split))]
    np.testing.assert_array_equal(kept[0].pixels, np.concatenate(joined))
    gone = weakref.ref(kept[0])
    loader = Loader(splits[0], batch=2, preprocess=SMALL, resident="cpu")
    expected = next(iter(loader)).images
    del packed, splits, kept
    loader._split = None  # type: ignore[assignment]  # the loader's core alone holds the pixels now
    gc.collect()
    assert gone() is None
    loader.set_epoch(0)
    assert torch.equal(next(iter(loader)).images, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preprocess": Preprocess(interpolation="lanczos")}, "interpolation must be 'bilinear' .*'lanczos'"),
        ({"preprocess": Preprocess(arithmetic="float")}, "arithmetic must be 'pillow' .* got 'float'"),
        ({"augment": Augment(color_jitter=ColorJitter(hue=0.1))}, "color_jitter must be off with resident"),
        ({"augment": Augment(grayscale=0.1)}, "grayscale must be off with resident pixels"),
        ({"augment": Augment(blur=GaussianBlur())}, "blur must be off with resident pixels"),
        ({"augment": Augment(erasing=RandomErasing())}, "erasing must be off with resident pixels"),
        ({"resident": "meta"}, "resident: device must be cpu"),
    ],
)
def test_what_the_device_cannot_do_is_refused(
    packed: StoreDataset, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(packed.split("train"), **({"batch": 2, "resident": "cpu"} | change))


def test_only_a_store_of_pixels_can_be_resident(layout: Path, tmp_path: Path) -> None:
    loose = placket.data.open(layout)
    files = placket.data.pack(loose, tmp_path / "files.store")
    for data, kind in ((loose, "loose files"), (files, "a store of files")):
        with pytest.raises(DatasetError, match=f"'train' must be of a store of pixels .* got {kind}"):
            Loader(data.split("train"), batch=2, resident="cpu")
    with pytest.raises(ValueError, match=r"files\.store must be a store of pixels, got one of files"):
        _C.ResidentPixels(files.store, torch.device("cpu"))
    pixels = placket.data.pack(loose, tmp_path / "pixels.store", size=20)
    again = placket.data.pack(loose, tmp_path / "again.store", size=20)
    with pytest.raises(
        ValueError, match=r"of the images' store .*again\.store, got those of .*pixels\.store"
    ):
        again.split("train").image_list(_C.ResidentPixels(pixels.store, torch.device("cpu")))


def test_pixels_must_fit_the_free_memory(packed: StoreDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 3 * int(packed.store.sizes[:, 0] @ packed.store.sizes[:, 1])
    monkeypatch.setattr(resident, "free_memory", lambda device: needed - 1)
    message = f"must fit the {needed - 1:,} bytes that are free on cpu, got {needed:,} bytes"
    with pytest.raises(ValueError, match=message):
        Loader(packed.split("train"), batch=2, resident="cpu")
    monkeypatch.setattr(resident, "free_memory", lambda device: needed)
    Loader(packed.split("train"), batch=2, resident="cpu")


def test_free_memory(device: torch.device) -> None:
    device = torch.empty(0, device=device).device
    free = resident.free_memory(device)
    assert 1 << 20 < free < 1 << 50
    if device.type == "cuda":  # what torch keeps for new tensors is free
        torch.empty(1 << 28, dtype=torch.uint8, device=device)
        assert resident.free_memory(device) >= free - (1 << 27)


def test_a_box_beside_its_image_is_named_or_skipped(layout: Path, tmp_path: Path) -> None:
    boxes = layout / "bbox_train.txt"
    lines = boxes.read_text().splitlines()
    lines[2] = "300 2 320 33"
    boxes.write_text("\n".join(lines) + "\n")
    train = placket.data.pack(placket.data.open(layout), tmp_path / "set.store", size=24).split("train")
    options: dict[str, Any] = {"batch": 2, "shuffle": False, "preprocess": SMALL, "resident": "cpu"}
    batches = iter(Loader(train, **options))
    next(batches)
    with pytest.raises(RuntimeError, match=r"img/2\.jpg: box must overlap the image"):
        next(batches)
    assert_same(
        train, torch.device("cpu"), on_error="skip", **{k: v for k, v in options.items() if k != "resident"}
    )
    skipping = Loader(train, on_error="skip", **options)
    assert [batch.plan.images.tolist() for batch in skipping] == [[0, 1], [3, 3], [4, 5]]
    assert list(skipping.skipped) == [train.paths[2]]


def test_a_picture_beyond_the_operator_is_named(tmp_path: Path) -> None:
    (tmp_path / "set/a").mkdir(parents=True)
    Image.new("RGB", (300, 300)).save(tmp_path / "set/a/1.png")
    data = placket.data.pack(placket.data.open(tmp_path / "set"), tmp_path / "set.store", size=300)
    augment = Augment(random_crop=RandomCrop(8192))  # of an input of one pixel, so up to 2.4 million pixels
    loader = Loader(
        data.split("train"), batch=1, preprocess=Preprocess(size=1), augment=augment, resident="cpu"
    )
    with pytest.raises(
        RuntimeError, match=r"a/1\.png: resident picture must stay within 1048576 pixels .* got \["
    ):
        take(loader, 30)


@pytest.mark.gpu
def test_a_batch_waits_for_nothing_and_follows_the_current_stream(packed: StoreDataset) -> None:
    options: dict[str, Any] = {"batch": 3, "preprocess": SMALL, "augment": MOVES, "keep_pixels": True}
    expected = take(Loader(packed.split("train"), **options), 4)
    loader = Loader(packed.split("train"), resident="cuda", **options)
    take(loader, 1)  # the first takes memory
    loader.set_epoch(0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            found = take(loader, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    for ours, theirs in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
        assert torch.equal(ours.cpu(), theirs)
