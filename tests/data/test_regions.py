"""Regions as rows: their masks, the segmented view, and the regions of generated garments."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
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
    Masks,
    Preprocess,
    RandomCrop,
    RandomErasing,
    Split,
    Texts,
    _pillow,
    verify,
)
from placket.data.garments import ATTRIBUTES, LOCAL, generate

Photograph = Callable[..., NDArray[np.uint8]]
Bits = NDArray[np.bool_]

REGION = Preprocess(size=24, fit="pad", box_margin=0.1)
LEVELS: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
MOVES = Augment(flip=0.5, crop_scale=0.5, random_crop=RandomCrop(3))


def blob(height: int, width: int, seed: int) -> Bits:
    """A mask with long edges, holes and single pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    across, down = rng.uniform(0.3, 0.7, 2)
    own = (x / width - across) ** 2 + (y / height - down) ** 2 < 0.12
    return own ^ (rng.random((height, width)) < 0.01)


def coverage(mask: Bits, picture: tuple[int, int, int, int], size: int) -> NDArray[np.float32]:
    """The share of each place of a square picture's input that a mask covers, by Pillow and NumPy."""
    cut = Image.fromarray(mask.astype(np.uint8) * 255).crop(picture)  # zeros outside
    return np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR)).astype(np.float32) / 255


# The definition


@pytest.mark.parametrize("box", [(10, 5, 30, 60), (0, 0, 50, 20), (-5, 40, 12, 99), (49, 79, 50, 80), None])
@pytest.mark.parametrize(
    ("interpolation", "arithmetic"), [("bilinear", "pillow"), ("bicubic", "pillow"), ("lanczos", "float")]
)
def test_the_segmented_view_is_the_crop_times_the_covered_share(
    photograph: Photograph, box: tuple[int, int, int, int] | None, interpolation: str, arithmetic: str
) -> None:
    pixels, mask = photograph(80, 50), blob(80, 50, 0)
    mask[79, 49] = True
    preprocess = Preprocess(
        size=24, fit="pad", box_margin=0.1, interpolation=interpolation, arithmetic=arithmetic
    )
    batch = _C.prepare_image(pixels, box, preprocess, mask)
    picture, _ = _C.frame(80, 50, box, preprocess)
    share = coverage(mask, picture, 24)
    assert share.any()
    expected = batch.images[0].permute(1, 2, 0).numpy() * share[:, :, None]
    np.testing.assert_array_equal(batch.segmented[0].permute(1, 2, 0).numpy(), expected)
    assert batch.segmented.is_contiguous(memory_format=torch.channels_last)
    plain = _C.prepare_image(pixels, box, preprocess)
    assert torch.equal(plain.images, batch.images)
    assert plain.segmented.numel() == 0


@pytest.mark.parametrize("shape", [(64, 64), (90, 41), (41, 90), (31, 33), (1, 5)], ids=str)
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_the_mask_is_cut_as_the_picture_is(photograph: Photograph, shape: tuple[int, int], fit: str) -> None:
    mask = blob(*shape, 1)
    painted = np.repeat(mask[:, :, None], 3, axis=2).astype(np.uint8) * 255
    white = _C.prepare_image(painted, preprocess=Preprocess(size=32, fit=fit, **LEVELS)).images
    preprocess = Preprocess(size=32, fit=fit, interpolation="bicubic")
    batch = _C.prepare_image(photograph(*shape), None, preprocess, mask)
    assert torch.equal(batch.segmented, batch.images * white)


def test_a_whole_mask_leaves_the_crop_and_an_empty_one_nothing(photograph: Photograph) -> None:
    pixels = photograph(40, 40)
    whole = _C.prepare_image(pixels, preprocess=REGION, mask=np.ones((40, 40), bool))
    assert torch.equal(whole.segmented, whole.images)
    empty = _C.prepare_image(pixels, preprocess=REGION, mask=np.zeros((40, 40), bool))
    assert torch.equal(empty.images, whole.images)
    assert not empty.segmented.any()


# The loader


@pytest.fixture
def regions(tmp_path: Path, photograph: Photograph) -> Split:
    """Seven regions of three photos; those of each photo lie in one mask."""
    (tmp_path / "a").mkdir()
    photos, numbers, boxes = [0, 0, 0, 1, 1, 2, 2], [1, 2, 9, 1, 2, 1, 4], []
    for photo in range(3):
        height, width = 40 + 5 * photo, 30 + 7 * photo
        Image.fromarray(photograph(height, width, photo)).save(tmp_path / "a" / f"{photo}.jpg", quality=95)
        mask = np.zeros((height, width), np.uint8)
        for i, (own, number) in enumerate(zip(photos, numbers, strict=True)):
            if own == photo:
                mask[blob(height, width, i) & (mask == 0)] = number
                boxes.append([2, 3, width - i, height - 4])
        Image.fromarray(mask).save(tmp_path / f"{photo}.png")
    one = placket.data.open(tmp_path).split("train")  # a class folder
    return dataclasses.replace(
        one,
        images=7,
        filenames=Texts(f"a/{photo}.jpg" for photo in photos),
        labels=placket.data.Labels.of([[(0, 0)]] * 7, (1,)),
        boxes=np.array(boxes),
        photos=np.array(photos),
        masks=Masks(Texts(f"{photo}.png" for photo in photos), np.array(numbers, dtype=np.uint8)),
    )


def test_rows_are_regions(regions: Split) -> None:
    assert regions.boxes is not None
    both, segmented, crop = (
        next(iter(Loader(regions, batch=7, shuffle=False, preprocess=REGION, views=views)))
        for views in ("both", "segmented", "crop")
    )
    for row, path in enumerate(regions.paths):
        expected = _C.prepare_image(
            _C.decode_file(path), regions.boxes[row].tolist(), REGION, regions.mask(row)
        )
        assert torch.equal(both.images[row], expected.images[0])
        assert torch.equal(both.segmented[row], expected.segmented[0])
        assert 0.1 < (expected.segmented == 0).float().mean() < 0.95
    assert torch.equal(segmented.images, both.segmented)
    assert torch.equal(crop.images, both.images)
    assert crop.segmented.numel() == segmented.segmented.numel() == 0
    assert both.segmented.is_contiguous(memory_format=torch.channels_last)


def test_both_views_have_one_geometry(regions: Split, tmp_path: Path) -> None:
    """Photos that are their own masks, painted white on black, say at each place what is covered."""
    assert regions.masks is not None
    painted = []
    for row in range(7):
        picture = np.repeat(regions.mask(row)[:, :, None], 3, axis=2).astype(np.uint8) * 255
        Image.fromarray(picture).save(tmp_path / f"row{row}.png")
        painted.append(f"row{row}.png")
    white = dataclasses.replace(regions, filenames=Texts(painted))
    loader = Loader(
        white,
        batch=7,
        copies=3,
        preprocess=Preprocess(size=24, fit="pad", box_margin=0.1, **LEVELS),
        augment=MOVES,
        views="both",
    )
    for batch in itertools.chain(loader, loader):
        assert torch.equal(batch.segmented, batch.images * batch.images)
        assert (batch.images[0] != batch.images[1]).any()


CHANGES = Augment(
    flip=0.5,
    crop_scale=0.5,
    color_jitter=ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
    grayscale=0.2,
    blur=GaussianBlur(5, p=0.5),
    erasing=RandomErasing(p=0.5, value=3.0),
)


def take(split: Split, batches: int = 6, **options: Any) -> Iterator[Batch]:
    settings = {"batch": 3, "preprocess": REGION, "augment": CHANGES, "keep_pixels": True, "seed": 4}
    loader = Loader(split, **{**settings, **options})
    epochs = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    return itertools.islice(epochs, batches)


def test_bits_do_not_depend_on_threads(regions: Split) -> None:
    options: dict[str, Any] = {"views": "both", "copies": 2}
    expected = list(take(regions, threads=1, prefetch=1, **options))
    for threads, prefetch in [(2, 2), (5, 1), (3, 6)]:
        found = take(regions, threads=threads, prefetch=prefetch, **options)
        for ours, theirs in zip(found, expected, strict=True):
            for name in ("images", "segmented", "pixels"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_the_crop_is_the_same_with_and_without_the_other_view(regions: Split) -> None:
    plain = dataclasses.replace(regions, masks=None)
    for with_mask, without in zip(take(regions, views="both"), take(plain), strict=True):
        assert torch.equal(with_mask.images, without.images)
        assert torch.equal(with_mask.pixels, without.pixels)
        # Colours, blur and erasing are in both views: where all is covered they are equal.
        equal = with_mask.segmented == with_mask.images
        assert (equal | (with_mask.segmented.abs() <= with_mask.images.abs())).all()
        assert 0.02 < equal.float().mean() < 0.9


def test_bits_of_one_picture_are_regions_that_overlap(regions: Split, tmp_path: Path) -> None:
    assert regions.masks is not None
    first, second = blob(40, 30, 0), np.zeros((40, 30), bool)
    second[5:30, 4:20] = True
    Image.fromarray((first * 1 + second * 128).astype(np.uint8)).save(tmp_path / "0.png")
    numbers = np.array([0, 7, 6], dtype=np.uint8)
    split = dataclasses.replace(
        regions,
        images=3,
        filenames=regions.filenames[:3],
        labels=placket.data.Labels.of([[(0, 0)]] * 3, (1,)),
        boxes=None,
        masks=Masks(regions.masks.filenames[:3], numbers, bits=True),
    )
    np.testing.assert_array_equal(split.mask(0), first)
    np.testing.assert_array_equal(split.mask(1), second)
    (batch,) = Loader(split, batch=3, shuffle=False, preprocess=REGION, views="both")
    pixels = _C.decode_file(split.paths[0])
    for row, mask in enumerate((first, second, np.zeros_like(first))):
        expected = _C.prepare_image(pixels, preprocess=REGION, mask=mask)
        assert torch.equal(batch.segmented[row], expected.segmented[0])
    assert not batch.segmented[2].any()


def test_a_mask_is_decoded_once_a_batch(regions: Split) -> None:
    """The photos are JPEG, which needs no fallback; the masks need it."""
    names: list[int] = []

    def count(data: bytes, upright: bool = True) -> NDArray[np.uint8]:
        names.append(len(data))
        return _pillow.decode(data, upright)

    _C.set_decode_fallback(count)
    try:
        for threads in (1, 4):
            names.clear()
            loader = Loader(
                regions, batch=7, copies=2, preprocess=REGION, views="both", threads=threads, prefetch=1
            )
            for _ in range(4):
                (_,) = loader
            del loader
            assert 4 * 3 <= len(names) <= 5 * 3  # of 14 rows each; a fifth batch may have begun
    finally:
        _C.set_decode_fallback(_pillow.decode)


# What is wrong


def load(split: Split, **options: Any) -> Batch:
    settings: dict[str, Any] = {"batch": 7, "shuffle": False, "preprocess": REGION, "views": "both"}
    return next(iter(Loader(split, **{**settings, **options})))


def test_bad_masks_are_named(regions: Split) -> None:
    root = regions.root
    good = (root / "1.png").read_bytes()
    bad = {
        "missing": (None, r"1\.png: No such file or directory"),
        "empty": (b"", r"1\.png: file is empty"),
        "cut off": (good[: len(good) // 2], r"1\.png: (damaged image|image file is truncated|broken PNG)"),
        "JPEG": ((root / "a/1.jpg").read_bytes(), r"1\.png: mask must be a PNG file, got another"),
    }
    for data, message in bad.values():
        if data is None:
            (root / "1.png").unlink()
        else:
            (root / "1.png").write_bytes(data)
        with pytest.raises(RuntimeError, match=message):
            load(regions)
        batch = load(regions, on_error="skip")
        assert batch.plan.images.tolist() == [0, 1, 2, 5, 5, 5, 6]
        load(regions, views="crop")
    kinds = {"RGB": "8 bits of colour type 2", "P": "8 bits of colour type 3", "1": "1 bits of colour type 0"}
    for mode, depth in kinds.items():
        Image.fromarray(blob(45, 37, 3).astype(np.uint8) * 200).convert(mode).save(root / "1.png")
        with pytest.raises(RuntimeError, match=rf"1\.png: mask must be a PNG of one grey .* got {depth}"):
            load(regions)
    Image.new("L", (37, 44)).save(root / "1.png")
    with pytest.raises(RuntimeError, match=r"1\.png: mask must have its image's 37 x 45 pixels, got 37 x 44"):
        load(regions)


def test_bad_arguments_are_named(regions: Split, photograph: Photograph) -> None:
    assert regions.masks is not None
    plain = dataclasses.replace(regions, masks=None)
    for views in ("segmented", "both"):
        with pytest.raises(ValueError, match=f"views must be 'crop' of images without masks, got '{views}'"):
            load(plain, views=views)
    with pytest.raises(ValueError, match="views must be 'crop', 'segmented' or 'both', got 'mask'"):
        load(regions, views="mask")
    with pytest.raises(ValueError, match="split 'train' must have masks, got none"):
        plain.mask(0)
    few = dataclasses.replace(regions.masks, filenames=regions.masks.filenames[:3])
    with pytest.raises(ValueError, match="as many files as numbers, got 3 and 7"):
        dataclasses.replace(regions, masks=few).image_list()
    less = Masks(regions.masks.filenames[:3], regions.masks.numbers[:3])
    with pytest.raises(ValueError, match="masks must be none or one for each of 7 images, got 3"):
        dataclasses.replace(regions, masks=less).image_list()
    bits = dataclasses.replace(regions.masks, bits=True)
    with pytest.raises(ValueError, match=r"masks of bits must have numbers in \[0, 8\), got 9"):
        dataclasses.replace(regions, masks=bits).image_list()
    with pytest.raises(RuntimeError, match="mask must have its image's 30 x 40 pixels, got 30 x 39"):
        _C.prepare_image(photograph(40, 30), mask=np.ones((39, 30), bool))
    with pytest.raises(ValueError, match=r"mask must have shape \[height, width\], got 3 dimensions"):
        _C.prepare_image(photograph(40, 30), mask=np.ones((40, 30, 1), bool))


# Generated garments


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regions") / "garments"
    generate(folder, items=50, size=48, workers=1)
    return folder


def test_regions_of_garments(garments: Path) -> None:
    data = placket.data.open(garments)
    seen: set[int] = set()
    for name in data.splits:
        photos, rows = data.split(name), data.region_split(name)
        assert rows is not None
        assert rows.masks is not None
        assert rows.photos is not None
        assert rows.boxes is not None
        assert rows.identities is not None
        assert len(rows) == len(photos) * len(ATTRIBUTES)
        assert rows.schema == data.schema
        parts = data.regions(name)
        for row in range(0, len(rows), 5):
            photo, ((attribute, value),) = int(rows.photos[row]), rows.labels[row]
            assert rows.filenames[row] == photos.filenames[photo]
            assert (attribute, value) in photos.labels[photo]
            own = parts[(parts[:, 0] == photo) & (parts[:, 1] == attribute)][:, 2:]
            assert len(own) == (2 if data.schema.names[attribute] == "sleeve" else 1)
            x0, y0, x1, y1 = rows.boxes[row].tolist()
            assert [x0, y0] == own[:, :2].min(axis=0).tolist()
            assert [x1, y1] == own[:, 2:].max(axis=0).tolist()
            ys, xs = np.nonzero(rows.mask(row))
            assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x0, y0, x1, y1)
        # Regions of one photo have one identity, those of others and of other splits have others.
        assert len(np.unique(np.stack([rows.photos, rows.identities]), axis=1).T) == len(photos)
        own_identities = set(rows.identities.tolist())
        assert len(own_identities) == len(photos)
        assert not own_identities & seen
        seen |= own_identities
        asked, offered = rows.queries[:, 0], rows.candidates[:, 0]
        assert len(asked) + len(offered) == (0 if name == "train" else len(rows))
        assert not set(rows.photos[asked].tolist()) & set(rows.photos[offered].tolist())
        (batch, *_) = Loader(rows, batch=8, preprocess=REGION, views="both")
        assert ((batch.labels >= 0).sum(dim=1) == 1).all()
    assert set(LOCAL) < set(data.schema.names)


def test_a_packed_set_has_no_split_of_regions(garments: Path, tmp_path: Path) -> None:
    packed = placket.data.pack(placket.data.open(garments), tmp_path / "garments.store")
    assert packed.regions("test") is not None
    assert packed.region_split("test") is None


def test_regions_without_masks_have_boxes(layout: Path) -> None:
    data = placket.data.open(layout)
    rows = data.region_split("test")
    assert data.region_split("train") is None
    assert rows is not None
    assert rows.masks is None
    assert rows.photos.tolist() == [0, 1]
    assert rows.boxes.tolist() == [[1, 2, 29, 9], [3, 3, 8, 9]]
    assert [rows.labels[i] for i in range(2)] == [[(0, 0)], [(1, 1)]]
    assert rows.line(1) == 2


def test_verify_looks_at_masks(garments: Path, tmp_path: Path) -> None:
    shutil.copytree(garments, tmp_path / "garments")
    root = tmp_path / "garments"
    assert verify(root).ok
    (root / "masks/000001.png").unlink()
    (root / "masks/000002.png").write_bytes(b"\x89PNG")
    Image.new("L", (48, 47), 63).save(root / "masks/000003.png")
    Image.new("L", (48, 48), 63 - 4).save(root / "masks/000004.png")
    problems = verify(root).problems
    found = {(p.kind, Path(p.file).name, p.severity) for p in problems}
    assert found == {
        ("missing", "000001.png", "error"),
        ("damaged", "000002.png", "error"),
        ("out of range", "000003.png", "error"),
        ("out of range", "000004.png", "error"),
    }
    messages = [p.message for p in problems if p.kind == "out of range"]
    assert messages == [
        "mask must have the 48 x 48 pixels of img/000003.jpg, got 48 x 47",
        "mask must have a pixel of region 2, got none",
    ]


def test_more_attributes_than_bits_are_told(layout: Path) -> None:
    meta = json.loads((layout / "meta.json").read_text())["garments"]
    names = [f"a{i}" for i in range(9)]
    meta = {"ATTRIBUTES": names, "ATTRIBUTES_NUM": dict.fromkeys(names, 3)}
    (layout / "meta.json").write_text(json.dumps({"garments": meta}))
    (layout / "masks").mkdir()
    data = placket.data.open(layout)
    with pytest.raises(DatasetError, match="masks: masks must be of at most 8 attributes, got 9"):
        data.region_split("test")
    assert [p.kind for p in data.inspect("test")[1]] == ["out of range"]
