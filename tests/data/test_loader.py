from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import placket.data
from placket import _C
from placket.data import (
    Augment,
    Batch,
    ColorJitter,
    DatasetError,
    GaussianBlur,
    Loader,
    Preprocess,
    RandomErasing,
    Split,
    _pillow,
)

Photograph = Callable[..., NDArray[np.uint8]]

SMALL = Preprocess(size=16, box_margin=0.1)
CHANGES = Augment(
    flip=0.5,
    crop_scale=0.5,
    color_jitter=ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
    grayscale=0.2,
    blur=GaussianBlur(5, p=0.5),
    erasing=RandomErasing(p=0.5),
)


@pytest.fixture
def train(layout: Path) -> Split:
    return placket.data.open(layout).split("train")


def tensors(batch: Batch) -> list[torch.Tensor]:
    names = ("images", "attributes", "values", "labels", "pixels", "offsets", "sizes")
    return [getattr(batch, name) for name in names]


def take(loader: Loader, batches: int) -> list[list[torch.Tensor]]:
    epochs = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    return [tensors(batch) for batch in itertools.islice(epochs, batches)]


@pytest.mark.parametrize("sampler", ["images", "triplets"])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_bits_do_not_depend_on_threads(train: Split, sampler: Any, fit: str) -> None:
    def load(threads: int, prefetch: int) -> list[list[torch.Tensor]]:
        loader = Loader(
            train,
            sampler=sampler,
            batch=3,
            triplets=9,
            preprocess=Preprocess(size=16, fit=fit, box_margin=0.1),
            augment=CHANGES,
            keep_pixels=True,
            seed=4,
            threads=threads,
            prefetch=prefetch,
        )
        return take(loader, 7)

    expected = load(1, 1)
    for threads, prefetch in [(2, 2), (5, 1), (3, 6)]:
        found = load(threads, prefetch)
        for ours, theirs in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
            assert torch.equal(ours, theirs)


def test_copies_are_augmented_each_anew(train: Split) -> None:
    shared: dict[str, Any] = {"batch": 3, "copies": 2, "preprocess": SMALL, "seed": 4}
    (one, two) = (next(iter(Loader(train, augment=CHANGES, threads=n, **shared))).images for n in (1, 3))
    assert torch.equal(one, two)
    first, second = one.unflatten(0, (-1, 2)).unbind(1)
    assert (first != second).flatten(1).any(dim=1).all()
    plain = next(iter(Loader(train, **shared))).images.unflatten(0, (-1, 2))
    assert torch.equal(plain[:, 0], plain[:, 1])


def test_rows_are_the_images_of_the_split(train: Split) -> None:
    (batch,) = Loader(train, batch=6, shuffle=False, preprocess=SMALL)
    assert batch.plan.images.tolist() == list(range(6))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.images.dtype == torch.float32
    assert train.boxes is not None
    for path, box, row in zip(train.paths, train.boxes.tolist(), batch.images, strict=True):
        assert torch.equal(_C.prepare_image(_C.decode_file(path), box, SMALL).images[0], row)
    assert batch.labels.tolist() == [[0, 0], [1, 1], [2, -1], [0, 1], [-1, 0], [1, 1]]
    assert (
        batch.attributes.numel() == batch.values.numel() == batch.pixels.numel() == batch.sizes.numel() == 0
    )
    assert batch.images.data_ptr() == batch.images.data_ptr()  # the batch's own memory, not a copy each time


def test_a_triplet_batch_has_anchors_positives_negatives(train: Split) -> None:
    batch = next(iter(Loader(train, sampler="triplets", batch=4, triplets=8, preprocess=SMALL)))
    assert batch.images.shape == (12, 3, 16, 16)
    for row, (a, v) in enumerate(zip(batch.attributes.tolist(), batch.values.tolist(), strict=True)):
        assert (a, v) in train.labels[batch.plan.images[row]]


def test_kept_pixels_give_the_images(train: Split) -> None:
    """What a row was made from, prepared again, is the row; where flipped, mirror image of mirror image."""
    for augment in (Augment(crop_scale=0.4), Augment(flip=1.0, crop_scale=0.4)):
        loader = Loader(train, batch=6, preprocess=SMALL, augment=augment, keep_pixels=True)
        (batch,) = loader
        assert batch.pixels.numel() == 3 * batch.sizes.prod(1).sum()
        for row in range(6):
            height, width = batch.sizes[row].tolist()
            start = int(batch.offsets[row])
            picture = batch.pixels[start : start + 3 * height * width].view(height, width, 3)
            expected = batch.images[row]
            if augment.flip:
                picture, expected = picture.flip(1), expected.flip(2)
            assert torch.equal(_C.prepare_image(picture.numpy(), preprocess=SMALL).images[0], expected)


def test_flips_and_crops(train: Split) -> None:
    plain = next(iter(Loader(train, batch=6, shuffle=False, preprocess=SMALL))).images
    loader = Loader(train, batch=6, shuffle=False, preprocess=SMALL, augment=Augment(flip=0.5))
    flips = []
    for _ in range(50):
        (batch,) = loader
        for row in range(6):
            mirrored = torch.equal(batch.images[row], plain[row].flip(2))
            assert mirrored != torch.equal(batch.images[row], plain[row])
            flips.append(mirrored)
    assert abs(sum(flips) - 150) < 5 * np.sqrt(300 / 4)  # five standard deviations

    loader = Loader(train, batch=6, shuffle=False, augment=Augment(crop_scale=0.25), keep_pixels=True)
    sizes = torch.stack([batch.sizes for _ in range(40) for batch in loader]).double()
    assert train.boxes is not None
    whole = torch.from_numpy(train.boxes[:, [3, 2]] - train.boxes[:, [1, 0]]).double()
    shares = (sizes / whole).prod(2)
    assert 0.2 < shares.min() < 0.3  # sides are whole pixels
    assert 0.9 < shares.max() <= 1.0
    assert abs(shares.mean() - 0.625) < 5 * 0.75 / np.sqrt(12 * 240)


def test_an_epoch_can_be_resumed(train: Split) -> None:
    def loader() -> Loader:
        return Loader(train, batch=2, preprocess=SMALL, augment=CHANGES, seed=9)

    expected = take(loader(), 9)
    resumed = loader()
    resumed.set_epoch(2)
    assert len(resumed) == 3
    for found, want in zip(take(resumed, 3), expected[6:], strict=True):
        assert torch.equal(found[0], want[0])
    broken_off = loader()
    next(iter(broken_off))
    for found, want in zip(take(broken_off, 3), expected[3:6], strict=True):
        assert torch.equal(found[0], want[0])


@pytest.mark.parametrize("sampler", ["images", "triplets"])
def test_ranks_together_are_one(train: Split, sampler: Any) -> None:
    def load(**options: Any) -> Batch:
        options |= {"sampler": sampler, "batch": 6, "triplets": 6, "preprocess": SMALL, "augment": CHANGES}
        return next(iter(Loader(train, **options)))

    whole = load().images
    parts = [load(rank=rank, world_size=3).images for rank in range(3)]
    roles = 3 if sampler == "triplets" else 1
    joined = torch.cat([part.unflatten(0, (roles, -1)) for part in parts], dim=1).flatten(0, 1)
    assert torch.equal(joined, whole)


def test_the_last_batch_may_be_smaller(train: Split) -> None:
    batches = list(Loader(train, batch=4, drop_last=False, preprocess=SMALL))
    assert [len(batch.images) for batch in batches] == [4, 2]
    last = [
        list(
            Loader(train, batch=5, drop_last=False, preprocess=SMALL, rank=r, world_size=5, keep_pixels=True)
        )[1]
        for r in range(5)
    ]
    assert [len(batch.images) for batch in last] == [0, 0, 0, 0, 1]
    assert last[0].offsets.tolist() == []


def test_a_bad_image_is_named_and_does_not_end_the_epoch(train: Split) -> None:
    data = Path(train.paths[3]).read_bytes()
    Path(train.paths[3]).write_bytes(data[: len(data) // 2])
    os.remove(train.paths[2])
    loader = _C.Loader(
        train.image_list(), None, _C.image_source(6, batch=2, shuffle=False), preprocess=SMALL, threads=3
    )
    assert loader.next().plan.images.tolist() == [0, 1]
    with pytest.raises(RuntimeError, match=r"img/2\.jpg: No such file or directory"):  # the first row's
        loader.next()
    assert loader.next().plan.images.tolist() == [4, 5]
    os.link(train.paths[1], train.paths[2])
    loader.seek(1)
    with pytest.raises(RuntimeError, match=r"img/3\.jpg: (?i:.*(damaged|truncated))"):
        loader.next()


def test_unreadable_images_can_be_replaced(train: Split) -> None:
    for damaged in (1, 2):
        Path(train.paths[damaged]).write_bytes(b"not an image")
    plain = Loader(train, batch=6, shuffle=False, preprocess=SMALL, on_error="skip", threads=3)
    (batch,) = plain
    assert batch.plan.images.tolist() == [0, 3, 3, 3, 4, 5]
    np.testing.assert_array_equal(batch.labels[1], batch.labels[3])
    np.testing.assert_array_equal(batch.images[1], batch.images[3])
    assert list(plain.skipped) == [train.paths[1], train.paths[2]]
    assert "not an image" in plain.skipped[train.paths[1]]


def test_a_replacement_carries_the_value_that_was_drawn(train: Split) -> None:
    Path(train.paths[1]).write_bytes(b"not an image")
    options = {"batch": 50, "triplets": 50, "seed": 1}
    before = _C.triplet_source(train.labels.to_native(), **options).plan(0)
    loaders = [
        Loader(train, sampler="triplets", preprocess=SMALL, on_error="skip", threads=n, **options)
        for n in (1, 3)
    ]
    (after,), (again,) = (list(loader) for loader in loaders)
    assert (before.images == 1).any()
    rows = zip(
        before.images.tolist(), after.plan.images.tolist(), before.attributes, before.values, strict=True
    )
    for drawn, taken, attribute, value in rows:
        assert taken == (3 if drawn == 1 else drawn)
        assert (attribute, value) in train.labels[taken]
    assert all(torch.equal(x, y) for x, y in zip(tensors(after), tensors(again), strict=True))
    with pytest.raises(RuntimeError, match="is not an image"):
        next(iter(Loader(train, sampler="triplets", preprocess=SMALL, **options)))


def test_where_no_image_can_be_read_skipping_ends(train: Split) -> None:
    for path in train.paths:
        os.remove(path)
    with pytest.raises(RuntimeError, match=r"img/\d\.jpg: cannot be read, nor can any image that could"):
        next(iter(Loader(train, batch=2, preprocess=SMALL, on_error="skip")))


def test_a_box_beside_its_image_is_named(layout: Path) -> None:
    boxes = layout / "bbox_test.txt"
    boxes.write_text("0 0 9 9\n0 0 9 9\n500 0 509 9\n")
    loader = Loader(placket.data.open(layout).split("test"), batch=3, preprocess=SMALL)
    with pytest.raises(
        RuntimeError, match=r"img/8\.jpg: box must overlap the image of 46 x 48 pixels, got \[500"
    ):
        next(iter(loader))


@pytest.fixture
def slow_fallback() -> Iterator[list[str]]:
    """A decoder in Python that takes 20 ms and notes what it was asked for."""
    asked: list[str] = []

    def decode(data: bytes, upright: bool) -> NDArray[np.uint8]:
        asked.append(threading.current_thread().name)
        time.sleep(0.02)
        return _pillow.decode(data, upright)

    _C.set_decode_fallback(decode)
    yield asked
    _C.set_decode_fallback(_pillow.decode)


def pngs(folder: Path, count: int) -> _C.ImageList:
    for i in range(count):
        Image.new("L", (9, 9), i).save(folder / f"{i}.png")
    return _C.ImageList(_C.TextColumn(f"{i}.png" for i in range(count)), root=str(folder))


def test_a_decoder_in_python_runs_on_the_loaders_threads(tmp_path: Path, slow_fallback: list[str]) -> None:
    """It needs the GIL, so that this ends only if next() and the destructor give it up."""
    images = pngs(tmp_path, 100)
    preprocess = Preprocess(size=2, mean=(0, 0, 0), std=(1, 1, 1))
    source = _C.image_source(100, batch=5, shuffle=False)
    loader = _C.Loader(images, None, source, preprocess=preprocess, threads=3, prefetch=8)
    for step in range(2):
        found = loader.next().images[:, 0, 0, 0] * 255
        assert found.round().tolist() == list(range(5 * step, 5 * step + 5))
    assert loader.waited > 0.02
    before = len(slow_fallback)
    del loader
    asked = len(slow_fallback)
    assert asked - before <= 6  # an image or two of each thread, not the forty that were to be prefetched
    assert threading.main_thread().name not in slow_fallback


def test_the_interpreter_may_end_while_loading(tmp_path: Path) -> None:
    """Threads that wait for the GIL when it ends would otherwise abort the process."""
    pngs(tmp_path, 20)
    program = f"""
import placket.data, time
from placket import _C, data
decode = data._pillow.decode
_C.set_decode_fallback(lambda data, upright: time.sleep(0.03) or decode(data, upright))
images = _C.ImageList(_C.TextColumn(f"{{i}}.png" for i in range(20)), root="{tmp_path}")
loader = _C.Loader(images, None, _C.image_source(20, batch=4), threads=4, prefetch=5)
print(len(loader.next().images), flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "4\n", "")


def test_no_more_is_read_ahead_than_prefetch(tmp_path: Path, slow_fallback: list[str]) -> None:
    loader = _C.Loader(pngs(tmp_path, 40), None, _C.image_source(40, batch=4), threads=4, prefetch=2)
    loader.next()
    time.sleep(0.4)
    assert len(slow_fallback) == 12
    del loader


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 0}, "Loader: threads must be positive, got 0"),
        ({"prefetch": 0}, "Loader: prefetch must be positive, got 0"),
        ({"sampler": "pairs"}, "Loader: sampler must be 'images', .* or 'identities', got 'pairs'"),
        ({"batch": 7}, "image sampler: batch must be at most 6"),
    ],
)
def test_arguments_out_of_range(train: Split, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(train, **({"batch": 2} | arguments))


def test_triplets_need_two_values(layout: Path) -> None:
    (layout / "label_train.txt").write_text("".join(f"{i} 0 1\n" for i in range(6)))
    split = placket.data.open(layout).split("train")
    with pytest.raises(
        DatasetError,
        match=r"garments: split .train. must have an attribute with .*'sleeve' with 6 labels of 1",
    ):
        Loader(split, sampler="triplets", batch=2)


def test_products_are_drawn_by_identity(tmp_path: Path) -> None:
    """K images of each of P products, and another of the product where one cannot be read."""
    (tmp_path / "img").mkdir()
    rows = ["name,product,kind"]
    for i in range(24):
        Image.new("RGB", (9, 9), (i, i, i)).save(tmp_path / f"img/{i}.png")
        rows.append(f"{i},{f'p{i // 4}' if i < 20 else ''},{'ab'[i % 2]}")
    (tmp_path / "img/5.png").write_bytes(b"no image")
    (tmp_path / "set.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "set.yaml").write_text(
        "table: set.csv\nimage: img/{name}.png\nattributes: {kind: kind}\nidentity: product\n"
    )
    train = placket.data.open(tmp_path / "set.yaml").split("train")
    loader = Loader(
        train, sampler="identities", batch=9, images_of_class=3, steps=40, preprocess=SMALL, on_error="skip"
    )
    drawn = set()
    for batch in loader:
        images = batch.plan.images.reshape(3, 3)
        assert np.array_equal(images // 4, batch.values.reshape(3, 3))
        assert all(len(set(row)) == 1 for row in (images // 4).tolist())
        assert torch.equal(batch.labels[:, 0], torch.from_numpy(batch.plan.images % 2))
        drawn |= set(images.flatten().tolist())
    assert drawn == {*range(20)} - {5}
    assert list(loader.skipped) == [str(tmp_path / "img/5.png")]
    asen = dataclasses.replace(train, identities=None)
    with pytest.raises(DatasetError, match="split 'train' must have identities to draw, got none"):
        Loader(asen, sampler="identities", batch=9, images_of_class=3)


def test_domains_share_the_photos_of_a_product(tmp_path: Path) -> None:
    """Products of two and three photos, of one photo, and of one domain; one photo of no product."""
    photos = ["p0s", "p0s", "p0s", "p0c", "p0c", "p1s", "p1c", "p2c", "p2c", "p2c", "p3s", "-c"]
    (tmp_path / "img").mkdir()
    lines = ["name,product"]
    for i, photo in enumerate(photos):
        Image.new("RGB", (9, 9), (i, i, i)).save(tmp_path / f"img/{i}.png")
        lines.append(f"{i},{photo[:-1].strip('-')}")
    (tmp_path / "set.csv").write_text("\n".join(lines) + "\n")
    layout = "table: set.csv\nimage: img/{name}.png\nattributes: {kind: name}\nidentity: product\n"
    (tmp_path / "set.yaml").write_text(layout)
    domains = np.array([photo[-1] == "c" for photo in photos], dtype=np.int8)
    one_kind = placket.data.open(tmp_path / "set.yaml").split("train")
    train = dataclasses.replace(one_kind, domains=domains)
    shared: dict[str, Any] = {"sampler": "identities", "images_of_class": 4, "steps": 50, "preprocess": SMALL}
    found = set()
    for batch in Loader(train, batch=16, balance_domains=True, single_views=True, **shared):
        values, drawn = batch.values.numpy().reshape(4, 4), batch.plan.images.reshape(4, 4)
        for product, images in zip(values, drawn, strict=True):
            assert set(product.tolist()) == {product[0]}
            found.add((int(product[0]), tuple(np.sort(images).tolist()), tuple(domains[images].tolist())))
    both, one, other = (0, 0, 1, 1), (0, 0, 0, 0), (1, 1, 1, 1)
    of_two = {(0, (*shop, 3, 4), both) for shop in ((0, 1), (0, 2), (1, 2))} | {(1, (5, 5, 6, 6), both)}
    of_one = {(2, tuple(sorted((7, 8, 9, again))), other) for again in (7, 8, 9)} | {(3, (10,) * 4, one)}
    assert found == of_two | of_one
    # Without single views a product of one photo is not drawn.
    sampler = placket.data.BatchSampler(
        train, batch=12, sampler="identities", balance_domains=True, steps=20, roles=True
    )
    assert {value for batch in sampler for _, _, value in batch} == {0, 1, 2}

    def refused(split: Split, error: type[Exception], message: str, **changed: Any) -> None:
        with pytest.raises(error, match=message):
            Loader(split, **{"batch": 6, "balance_domains": True, **shared, **changed})

    refused(train, ValueError, "multiple of the 2 values of attribute 1 .*, got 3", images_of_class=3)
    refused(one_kind, DatasetError, "split 'train' must have domains to draw, got none", batch=8)
    refused(train, ValueError, "balance_domains must be False with sampler 'images'", sampler="images")


def test_a_saved_position_is_gone_on_from(train: Split) -> None:
    def loader() -> Loader:
        return Loader(train, batch=2, preprocess=SMALL, augment=CHANGES)

    whole = loader()
    expected = [batch.images for _ in range(3) for batch in whole]
    for given in range(2 * len(whole) + 1):
        first = loader()
        taken = [b.images for b in itertools.islice(itertools.chain(first, first, first), given)]
        other = loader()
        other.load_state_dict(first.state_dict())
        rest = [batch.images for _ in range(3) for batch in other]
        found = torch.stack((taken + rest)[: len(expected)])
        assert torch.equal(found, torch.stack(expected)), given
    with pytest.raises(ValueError, match=r"Loader: state must be of epochs of 3 steps, got \{'step': 1"):
        whole.load_state_dict({"step": 1, "steps_per_epoch": 5})


def test_an_iteration_that_is_left_ends_its_epoch(train: Split) -> None:
    loader = Loader(train, batch=2, preprocess=SMALL)
    next(iter(loader))
    assert [batch.plan.epoch for batch in loader] == [1, 1, 1]
    assert loader.state_dict()["step"] == 6
