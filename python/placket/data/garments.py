"""Draw garments whose attributes, regions, masks and sentences are known exactly.

Every attribute lives in a place of its own (the pattern: everywhere), each value is as frequent as the
others and independent of them, and everything else (pose, colours, background, light, occluders, texture,
JPEG quality) is drawn independently of the values, so that raw pixels and global colour say nothing about
them.

The directory has the layout of the ASEN family and masks besides:

    img/000000.jpg               the image, size x size
    masks/000000.png             uint8 of the same size; bit a is set where the pixel belongs to the region of
                                 attribute a
    meta.json                    names of attributes and values; "local" lists the attributes that have a
                                 place, "generator" the arguments of `generate`
    filenames_{split}.txt        one path a line; the line number, from 0, is the image id of that split
    label_{split}.txt            id 0 v0 1 v1 ... for every attribute
    bbox_{split}.txt             x0 y0 x1 y1 of the place of the garment: from neck to feet and both arms, so
                                 that the box tells neither the hem nor the sleeves
    query_{valid,test}.txt       id attribute value: one image in five, every attribute
    candidate_{valid,test}.txt   id attribute value: the other images, every attribute
    regions_{split}.txt          id attribute x0 y0 x1 y1: one row for each part of the region, that is two
                                 for the sleeves and one for any other attribute
    captions_{split}.txt         id <TAB> sentence

Boxes are in pixels, x1 and y1 exclusive.

The region of an attribute is where a person looks to decide. Every value is something to see at that place:
none stands for nothing there, which could be told from anywhere.

    neckline                     the neck and the upper chest down to the deepest opening
    sleeve                       both arms from shoulder to wrist, bare or covered
    hem                          the hips and legs down to the shoes: how far down they are covered is the
                                 value, so the region is the same for every hem
    closure                      the strip down the centre front, from the neckline to the end of the closure
    pocket                       the pocket
    pattern                      all of the cloth

Closure and pocket have a margin of about 4 % of the picture on each side, half a cell of an attention map of
12 x 12 cells: such a map tells no place more closely.

`generate_products` draws photographs of products instead, each by its shop and by consumers:

    catalogue                    plain ground, frontal, even light; worn, or the garment alone; two a product
    street                       cluttered ground; turned, sheared, near or far, partly out of the picture or
                                 hidden; colour cast, exposure, blur, noise and JPEG of low quality; two or
                                 three a product

Four products at a time are a family: their attributes and the colour of their cloth are equal. What tells
them apart is what the attributes do not say: the colours of pattern and trims; the scale, angle and phase of
the pattern; an emblem on the chest, a band across it, sleeves of another colour; lengths and cut within their
value. A family is in one split.

The directory has the layout of DeepFashion's consumer-to-shop benchmark (`ConsumerToShopDataset`) and masks
besides:

    img/000000/shop_0.jpg        the photographs of product 0, size x size; consumer_0.jpg and so on
    masks/000000/shop_0.png      uint8 of the same size; 255 where the garment's cloth is to be seen
    meta.json                    names of attributes and values; "generator" the arguments
    Eval/list_eval_partition.txt each consumer's photograph with each of the shop's, item, split
    Anno/list_bbox_consumer2shop.txt  clothes type (full-body from the knee on), source, and the place of the
                                 garment as above, cut to the picture
    Anno/list_attr_*.txt         the attributes above of each item
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Array = NDArray[np.float64]
_Colour = tuple[int, int, int]
_Fill = _Colour | int  # an int on a mask
# Of an image: [x0, y0, x1, y1] of the place, then [attribute, x0, y0, x1, y1] ...
# Of a product: the places in its photographs.
_Boxes = list[list[int]]

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "neckline": ("round", "v", "square", "high", "collar"),
    "sleeve": ("sleeveless", "short", "elbow", "long"),
    "hem": ("cropped", "hip", "knee", "ankle"),
    "closure": ("concealed", "buttons", "zip", "laces"),
    "pocket": ("slit", "patch", "flap", "welt"),
    "pattern": ("solid", "striped", "dotted", "checked", "floral", "zigzag"),
}
"""Attributes in the order of their ids, with the names of their values in the order of theirs."""

LOCAL = ("neckline", "sleeve", "hem", "closure", "pocket")
"""Attributes whose region is a small part of the garment."""

SPLITS = ("train", "valid", "test")
"""70 %, 10 % and 20 % of the images."""

_NAME = "garments"
_FEWEST = 50  # one query and four candidates in the smallest split
_QUERY_EVERY = 5  # 20 % queries, 80 % candidates, as in the published lists
# Philox keys from here on shuffle labels, draw products, families and photographs; keys below draw images.
_LABEL_STREAM, _PRODUCT_STREAM, _FAMILY_STREAM, _PHOTO_STREAM = 2**63, 2**62, 2**62 + 2**61, 2**61
_FAMILY = 4  # products
_FEWEST_PRODUCTS = 9 * _FAMILY + 1  # ten families, one in the smallest split
_SHOP_PHOTOS, _PHOTOS = 2, 8  # of a product; keys of its photographs
_LEAST_SEEN = 0.65  # of the garment's body inside the picture
_MOST_HIDDEN = 0.35  # of the cloth inside it, by what is in front

# Body coordinates: x to the right, 0 on the body's axis; y down, 0 at the neck. The body is wide and its legs
# are short, so that every part can be told at 96 pixels.
# (y, half width) of shoulder, armpit, waist and hip:
_SIDE = ((0.04, 0.25), (0.18, 0.24), (0.33, 0.215), (0.47, 0.25))
_HEM = (0.375, 0.50, 0.635, 0.77)
_SLEEVE = (0.0, 0.105, 0.20, 0.315)  # lengths along an arm of 0.34
_NECK_DEPTH = (0.10, 0.175, 0.105, 0.0, 0.125)
_NECK = 0.108  # half width of the neck opening
_CLOSURE = (0.175, 0.06)  # top and half width of its strip
_POCKET = (0.148, 0.255, 0.074)  # centre x, centre y, half width; always the wearer's left, as on shirts
_FEET = 0.83
_SHOE = 0.055  # radius
_MARGIN = 0.04  # around closure and pocket in their regions


def generate(
    directory: str | os.PathLike[str],
    items: int = 2000,
    size: int = 160,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Draw `items` garments of `size` x `size` pixels into `directory` in the layout described above.

    Image i depends on `seed`, i, `size` and `items` only, never on `workers` (processes; by default one for
    each core). Everything is written to `<directory>.partial`, which takes the name `directory` when it is
    complete; what a killed run left there is replaced, and so is an earlier set of generated garments in
    `directory`.

    Raises `FileExistsError` where `directory` holds anything else, `ValueError` for arguments out of range.
    """
    counts = _split_sizes(items)
    workers = _check_settings("generate", size, seed, workers)
    labels = _labels(counts, seed)
    with _new_directory("generate", directory) as root:
        for folder in ("img", "masks"):
            (root / folder).mkdir()
        drawn = _draw_in_processes(root, "images", labels, size, seed, min(workers, items))
        _write_lists(root, counts, labels, drawn)
        _write_meta(root, {"seed": seed, "items": items, "size": size})


def generate_products(
    directory: str | os.PathLike[str],
    products: int = 1000,
    size: int = 160,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Draw photographs of `products` garments by shops and consumers in the layout described above.

    Photograph k of product i depends on `seed`, i, k, `size` and `products` only. The rest, and what is
    raised, is as of `generate`.
    """
    if products < _FEWEST_PRODUCTS:
        raise ValueError(f"generate_products: products must be at least {_FEWEST_PRODUCTS}, got {products}")
    workers = _check_settings("generate_products", size, seed, workers)
    families = -(-products // _FAMILY)
    of_splits = [families - families // 10 - families // 5, families // 10, families // 5]
    labels = _labels(of_splits, seed).repeat(_FAMILY, axis=0)[:products]
    splits = np.arange(len(SPLITS)).repeat(of_splits).repeat(_FAMILY)[:products]
    with _new_directory("generate_products", directory) as root:
        for product in range(products):
            for folder in ("img", "masks"):
                (root / folder / f"{product:06d}").mkdir(parents=True)
        drawn = _draw_in_processes(root, "products", labels, size, seed, min(workers, products))
        _write_product_lists(root, splits, labels, drawn)
        _write_meta(root, {"seed": seed, "products": products, "size": size})


def _check_settings(user: str, size: int, seed: int, workers: int | None) -> int:
    """Return the number of processes."""
    if not 32 <= size <= 4096:
        raise ValueError(f"{user}: size must be from 32 to 4096 pixels, got {size}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"{user}: seed must be from 0 to 2**64 - 1, got {seed}")
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise ValueError(f"{user}: workers must be at least 1, got {workers}")
    return workers


@contextmanager
def _new_directory(user: str, directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Give `<directory>.partial` to write to, which then takes the place of `directory`."""
    target = Path(directory).absolute()
    if target.exists() and not _is_replaceable(target):
        raise FileExistsError(
            f"{user}: directory must be new, empty or hold generated garments, got {target}; name another"
        )
    partial = target.with_name(target.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    try:
        partial.mkdir(parents=True)
        yield partial
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _is_replaceable(target: Path) -> bool:
    """Whether `target` is an empty directory or one that was written here."""
    if not target.is_dir():
        return False
    if not any(target.iterdir()):
        return True
    try:
        meta = json.loads((target / "meta.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(meta, dict) and "generator" in meta.get(_NAME, {})


def caption(values: Sequence[int]) -> str:
    """Say the values of all attributes, given in the order of `ATTRIBUTES`, in one sentence."""
    named = {name: names[value] for (name, names), value in zip(ATTRIBUTES.items(), values, strict=True)}
    sleeve = named["sleeve"] if named["sleeve"] == "sleeveless" else f"{named['sleeve']}-sleeved"
    hem = named["hem"] if named["hem"] == "cropped" else f"{named['hem']}-length"
    noun = "top" if named["hem"] in ("cropped", "hip") else "dress"
    neckline = "a collar" if named["neckline"] == "collar" else f"a {named['neckline']} neckline"
    closure = {"concealed": "a concealed closure", "zip": "a zip"}.get(named["closure"], named["closure"])
    article = "an" if sleeve[0] in "aeiou" else "a"
    return (
        f"{article} {sleeve} {named['pattern']} {hem} {noun} with {neckline}, {closure} "
        f"and a {named['pocket']} pocket"
    )


# Labels and lists


def _split_sizes(items: int) -> list[int]:
    if items < _FEWEST:
        raise ValueError(f"generate: items must be at least {_FEWEST}, got {items}")
    valid, test = items // 10, items // 5
    return [items - valid - test, valid, test]


def _labels(counts: Sequence[int], seed: int) -> NDArray[np.int64]:
    """Values [items, attributes], those of an attribute equally frequent in each split, give or take one."""
    columns = []
    for attribute, names in enumerate(ATTRIBUTES.values()):
        rng = _stream(seed, _LABEL_STREAM + attribute)
        columns.append(np.concatenate([rng.permutation(count) % len(names) for count in counts]))
    return np.stack(columns, axis=1)


def _stream(seed: int, counter: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, counter], dtype=np.uint64)))


def _write_lists(
    root: Path, counts: Sequence[int], labels: NDArray[np.int64], drawn: Sequence[_Boxes]
) -> None:
    first = 0
    for split, count in zip(SPLITS, counts, strict=True):
        rows: dict[str, list[str]] = {"filenames": [], "label": [], "bbox": [], "regions": [], "captions": []}
        lists: dict[str, list[str]] = {"query": [], "candidate": []}
        for image in range(count):
            values = labels[first + image].tolist()
            rows["filenames"].append(f"img/{first + image:06d}.jpg")
            rows["label"].append(
                " ".join(map(str, [image, *(x for pair in enumerate(values) for x in pair)]))
            )
            place, *regions = drawn[first + image]
            rows["bbox"].append(" ".join(map(str, place)))
            rows["regions"] += [" ".join(map(str, [image, *region])) for region in regions]
            rows["captions"].append(f"{image}\t{caption(values)}")
            chosen = lists["query" if image % _QUERY_EVERY == 0 else "candidate"]
            chosen += [f"{image} {attribute} {value}" for attribute, value in enumerate(values)]
        if split != "train":
            rows |= lists
        for stem, lines in rows.items():
            (root / f"{stem}_{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        first += count


def _write_product_lists(
    root: Path, splits: NDArray[np.int64], labels: NDArray[np.int64], drawn: Sequence[_Boxes]
) -> None:
    """Write the lists of the consumer-to-shop benchmark; `splits` [products] are places in `SPLITS`."""
    columns = [(name, value) for name, names in ATTRIBUTES.items() for value in range(len(names))]
    numbers = {name: number for number, name in enumerate(ATTRIBUTES, start=1)}
    knee = ATTRIBUTES["hem"].index("knee")
    pairs, boxes, items = [], [], []
    for product, (split, values, places) in enumerate(
        zip(splits.tolist(), labels.tolist(), drawn, strict=True)
    ):
        own = dict(zip(ATTRIBUTES, values, strict=True))
        item, status = f"id_{product:06d}", ("train", "val", "test")[split]
        photos = [f"img/{product:06d}/{name}.jpg" for name in _photo_names(product)]
        shop, consumer = photos[:_SHOP_PHOTOS], photos[_SHOP_PHOTOS:]
        pairs += [f"{asked} {answer} {item} {status}" for asked in consumer for answer in shop]
        clothes = 3 if own["hem"] >= knee else 1
        for number, (photo, place) in enumerate(zip(photos, places, strict=True)):
            boxes.append(" ".join(map(str, [photo, clothes, 1 + (number >= _SHOP_PHOTOS), *place])))
        items.append(" ".join([item, *("1" if own[name] == value else "-1" for name, value in columns)]))
    # The published lists have a Chinese name and an English one; ours have the English one twice.
    types = [f"{name}  {name}" for name in ATTRIBUTES]
    named = [(ATTRIBUTES[name][value], numbers[name]) for name, value in columns]
    cloth = [f"{value}  {value}  {number}" for value, number in named]
    lists = {
        "Eval/list_eval_partition.txt": ("consumer_image_name shop_image_name item_id status", pairs),
        "Anno/list_bbox_consumer2shop.txt": ("image_name clothes_type source_type x_1 y_1 x_2 y_2", boxes),
        "Anno/list_attr_type.txt": ("chinese_name  english_name", types),
        "Anno/list_attr_cloth.txt": ("chinese_name  english_name  attribute_type", cloth),
        "Anno/list_attr_items.txt": ("item_id attribute_labels", items),
    }
    for name, (header, rows) in lists.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("\n".join([str(len(rows)), header, *rows]) + "\n", encoding="utf-8")


def _write_meta(root: Path, generator: dict[str, int]) -> None:
    meta = {
        _NAME: {
            "ATTRIBUTES": list(ATTRIBUTES),
            "ATTRIBUTES_NUM": {name: len(names) for name, names in ATTRIBUTES.items()},
            "VALUES": {name: list(names) for name, names in ATTRIBUTES.items()},
            "local": list(LOCAL),
            "generator": generator,
        },
    }
    (root / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


# Processes


def _draw_in_processes(
    root: Path, what: str, labels: NDArray[np.int64], size: int, seed: int, workers: int
) -> list[_Boxes]:
    """Draw all "images" or "products" into `root`, every `workers`-th in each process."""
    if workers == 1:
        return _draw_share(what, str(root), labels.tolist(), size, seed, 0, 1)
    # This file runs as a program of its own rather than under multiprocessing: a fork would inherit the
    # threads of torch, and a spawned process would import the caller's main module and torch to draw with
    # neither.
    program = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
    }
    processes = []
    try:
        for worker in range(workers):
            job: dict[str, object] = {
                "labels": labels.tolist(),
                "size": size,
                "seed": seed,
                "first": worker,
                "step": workers,
            }
            job |= {"what": what, "root": str(root)}
            process = subprocess.Popen(
                [sys.executable, "-c", program, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            processes.append(process)
            assert process.stdin is not None
            process.stdin.write(json.dumps(job))
            process.stdin.close()
            process.stdin = None
        drawn: list[_Boxes] = [[] for _ in labels]
        for worker, process in enumerate(processes):
            output, errors = process.communicate()
            if process.returncode != 0:
                reason = (
                    errors.strip().splitlines()[-1] if errors.strip() else f"exit status {process.returncode}"
                )
                raise RuntimeError(f"generate: a drawing process failed: {reason}")
            drawn[worker::workers] = json.loads(output)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return drawn


def _draw_share(
    what: str, root: str, labels: Sequence[Sequence[int]], size: int, seed: int, first: int, step: int
) -> list[_Boxes]:
    draw = {"images": _draw_image, "products": _draw_product}[what]
    return [draw(root, index, labels[index], size, seed) for index in range(first, len(labels), step)]


def _draw_image(root: str, index: int, values: Sequence[int], size: int, seed: int) -> _Boxes:
    image, mask, quality, boxes = _draw(values, size, _stream(seed, index))
    _save(root, f"{index:06d}", image, mask, quality)
    return boxes


def _draw_product(root: str, index: int, values: Sequence[int], size: int, seed: int) -> _Boxes:
    places = []
    for photo, name in enumerate(_photo_names(index)):
        image, mask, quality, place = _draw_photo(
            values,
            size,
            street=photo >= _SHOP_PHOTOS,
            # The same from their beginning for each photograph.
            family=_stream(seed, _FAMILY_STREAM + index // _FAMILY),
            own=_stream(seed, _PRODUCT_STREAM + index),
            rng=_stream(seed, _PHOTO_STREAM + index * _PHOTOS + photo),
        )
        _save(root, f"{index:06d}/{name}", image, mask, quality)
        places.append(place)
    return places


def _photo_names(product: int) -> list[str]:
    """Photographs of a product in their order: the shop's, then those of consumers, of every other three."""
    consumers = 2 + product % 2
    return [*(f"shop_{i}" for i in range(_SHOP_PHOTOS)), *(f"consumer_{i}" for i in range(consumers))]


def _save(root: str, name: str, image: Image.Image, mask: Image.Image, quality: int) -> None:
    image.save(f"{root}/img/{name}.jpg", quality=quality)
    mask.save(f"{root}/masks/{name}.png")


# One image


class _Stance(NamedTuple):
    """How freely a body stands in its picture."""

    sway: float = 1.0  # factor of its angle, shear and stretch
    fill: tuple[float, float] = (0.86, 0.98)  # longer side of what must be seen, in sides of the picture
    outside: float = 0.0  # share of that which may be outside, at most
    stray: float = 1.0  # from the middle, in the room there is


_SHOP_STANCE = _Stance(sway=0.15, fill=(0.92, 0.98), stray=0.3)
_STREET_STANCE = _Stance(sway=3.0, fill=(0.7, 1.5), outside=0.4)
_OTHER_STANCE = _Stance()


class _Pose:
    """Where the body stands: an affine map from body coordinates to the unit square, and its joints."""

    def __init__(self, rng: np.random.Generator, stance: _Stance = _OTHER_STANCE) -> None:
        self.arms = []
        for side in (-1.0, 1.0):
            upper, lower = rng.uniform(0.2, 0.6), rng.uniform(-0.5, 0.35)
            shoulder = np.array([side * 0.215, 0.085])
            elbow = shoulder + 0.17 * np.array([side * math.sin(upper), math.cos(upper)])
            wrist = elbow + 0.17 * np.array([side * math.sin(upper + lower), math.cos(upper + lower)])
            self.arms.append(np.stack([shoulder, elbow, wrist]))
        self.legs = []
        for side in (-1.0, 1.0):
            foot = side * rng.uniform(0.07, 0.17)
            knee = 0.5 * (side * 0.12 + foot) + rng.uniform(-0.02, 0.02)
            self.legs.append(np.array([[side * 0.12, 0.44], [knee, 0.64], [foot, _FEET]]))
        self.flare = rng.uniform(0.0, 0.3)
        self.waist = rng.uniform(0.9, 1.08)

        sway = stance.sway
        angle, shear = rng.normal(0.0, 0.06 * sway), rng.uniform(-0.08 * sway, 0.08 * sway)
        stretch = rng.uniform(1.0 - 0.08 * sway, 1.0 + 0.1 * sway)
        rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        self.matrix = rotation @ np.array([[stretch, shear], [0.0, 1.0]])
        # What must be inside the image is the same for every value of every attribute, so that neither scale
        # nor place tells one: the neck, the feet and both whole arms.
        extent = np.concatenate([*self.arms, [[-0.27, _FEET], [0.27, _FEET], [-0.13, -0.09], [0.13, -0.09]]])
        placed = extent @ self.matrix.T
        low, high = placed.min(axis=0), placed.max(axis=0)
        scale = rng.uniform(*stance.fill) / (high - low).max()
        self.matrix *= scale
        extent = scale * (high - low)
        first, last = 0.01 - stance.outside * extent, 0.99 - extent + stance.outside * extent
        first, last = np.minimum(first, last), np.maximum(first, last)
        inset = 0.5 * (1.0 - stance.stray) * (last - first)
        self.offset = rng.uniform(first + inset, last - inset) - scale * low
        self.box = (*(scale * low + self.offset), *(scale * high + self.offset))

    def pixels(self, size: int) -> list[int]:
        """The place of the body in a picture of `size` x `size` pixels: x0 y0 x1 y1, cut to it."""
        x0, y0, x1, y1 = (min(max(size * edge, 0.0), float(size)) for edge in self.box)
        return [math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)]

    def seen(self, bottom: float) -> float:
        """How much of a body from neck to `bottom` is inside the picture."""
        x, y = np.meshgrid(np.linspace(-0.22, 0.22, 6), np.linspace(0.02, bottom, 9))
        placed = self.place(np.stack([x.ravel(), y.ravel()], axis=1))
        return float(((placed >= 0.0) & (placed <= 1.0)).all(axis=1).mean())

    def place(self, points: Array | Sequence[Sequence[float]]) -> Array:
        placed: Array = np.asarray(points, dtype=np.float64) @ self.matrix.T + self.offset
        return placed

    def body(self, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Body coordinates x, y [size, size] of the pixel centres of the unit square."""
        axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
        inverse, offset = np.linalg.inv(self.matrix).astype(np.float32), self.offset.astype(np.float32)
        dx, dy = axis[None, :] - offset[0], axis[:, None] - offset[1]
        return inverse[0, 0] * dx + inverse[0, 1] * dy, inverse[1, 0] * dx + inverse[1, 1] * dy

    def half_width(self, y: Array | float) -> Array:
        """Half width of the garment's body at height y, smooth between shoulder, armpit, waist and hip."""
        heights, widths = np.array(_SIDE).T
        widths = widths * np.array([1.0, 1.0, self.waist, 1.0])
        y = np.asarray(y, dtype=np.float64)
        i = np.clip(np.searchsorted(heights, y) - 1, 0, len(heights) - 2)
        t = np.clip((y - heights[i]) / (heights[i + 1] - heights[i]), 0.0, 1.0)
        smooth = widths[i] + (widths[i + 1] - widths[i]) * t * t * (3.0 - 2.0 * t)
        return np.asarray(smooth + self.flare * np.maximum(y - heights[-1], 0.0))


class _Canvas:
    """An image of `full` x `full` pixels drawn on in body coordinates; lengths are in body units."""

    def __init__(self, image: Image.Image, pose: _Pose) -> None:
        self.image, self.pose, self.full = image, pose, image.width
        self.pen = ImageDraw.Draw(image)
        self.unit = math.sqrt(abs(np.linalg.det(pose.matrix))) * self.full

    def points(self, points: Array | Sequence[Sequence[float]]) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, y in self.pose.place(points) * self.full]

    def polygon(
        self, points: Array | Sequence[Sequence[float]], fill: _Fill, edge: _Fill | None = None
    ) -> None:
        self.pen.polygon(self.points(points), fill=fill)
        if edge is not None:
            self.line([*points, points[0]], edge, 0.009)

    def line(self, points: Array | Sequence[Sequence[float]], fill: _Fill, width: float) -> None:
        self.pen.line(self.points(points), fill=fill, width=max(1, round(width * self.unit)), joint="curve")

    def disc(
        self, centre: Array | Sequence[float], radius: float, fill: _Fill, edge: _Fill | None = None
    ) -> None:
        ((cx, cy),) = self.points(np.asarray([centre]))
        r = radius * self.unit
        width = max(1, round(0.006 * self.unit))
        self.pen.ellipse([cx - r, cy - r, cx + r, cy + r], fill=fill, outline=edge, width=width)


def _draw(
    values: Sequence[int], size: int, rng: np.random.Generator
) -> tuple[Image.Image, Image.Image, int, _Boxes]:
    """The image, its mask, the JPEG quality to save it with, and its boxes."""
    value = dict(zip(ATTRIBUTES, values, strict=True))
    pose, colours = _Pose(rng), _Colours(rng)
    hem = _HEM[value["hem"]] + rng.uniform(-0.015, 0.015)
    closure_end = min(hem, 0.46) - 0.02
    # Drawn at twice the size and halved at the end, against jagged edges.
    canvas = _Canvas(_background(2 * size, colours, rng), pose)
    worn = bool(rng.random() < 0.8)
    if worn:
        _draw_figure(canvas, colours, rng)
    cloth = _draw_cloth(canvas, value, hem, worn, colours, rng)
    _draw_neckline(canvas, value["neckline"], colours, rng)
    _draw_closure(canvas, value["closure"], closure_end, colours, rng)
    _draw_pocket(canvas, value["pocket"], colours, rng)

    cover = np.asarray(cloth.reduce(2))
    parts = [*_regions(pose, size, closure_end), ("pattern", cover > 127)]
    _draw_occluders(canvas, parts, rng)
    image = _photograph(canvas.image.reduce(2), _folds(pose, cover, rng), rng)

    names = list(ATTRIBUTES)
    bits = np.zeros((size, size), dtype=np.uint8)
    regions = []
    for name, part in parts:
        bits[part] |= 1 << names.index(name)
        (ys,), (xs,) = np.nonzero(part.any(axis=1)), np.nonzero(part.any(axis=0))
        regions.append([names.index(name), int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1])
    return image, Image.fromarray(bits), int(rng.integers(60, 96)), [pose.pixels(size), *sorted(regions)]


def _draw_photo(
    values: Sequence[int],
    size: int,
    street: bool,
    family: np.random.Generator,
    own: np.random.Generator,
    rng: np.random.Generator,
) -> tuple[Image.Image, Image.Image, int, list[int]]:
    """A photograph of a product, its mask, the JPEG quality to save it with, and the garment's place.

    `family` draws what products of equal attributes share, `own` the product, `rng` the photograph.
    """
    value = dict(zip(ATTRIBUTES, values, strict=True))
    colours = _Colours(own, family, rng)
    details = _Details.draw(own, colours)
    flare, waist = own.uniform(0.0, 0.3), own.uniform(0.9, 1.08)
    hem = _HEM[value["hem"]] + own.uniform(-0.015, 0.015)
    closure_end = min(hem, 0.46) - 0.02

    stance = _STREET_STANCE if street else _SHOP_STANCE
    while (pose := _Pose(rng, stance)).seen(hem) < _LEAST_SEEN:
        pass
    pose.flare, pose.waist = flare, waist
    ground = _clutter(2 * size, colours, rng) if street else _backdrop(2 * size, rng)
    canvas = _Canvas(ground, pose)
    worn = street or bool(rng.random() < 0.6)
    if worn:
        _draw_figure(canvas, colours, rng)
    cloth = _draw_cloth(canvas, value, hem, worn, colours, own, details)
    _draw_neckline(canvas, value["neckline"], colours, own)
    _draw_closure(canvas, value["closure"], closure_end, colours, own)
    _draw_pocket(canvas, value["pocket"], colours, own)
    if details.emblem is not None:
        _draw_emblem(canvas, details.emblem, cloth)

    cover = np.asarray(cloth.reduce(2))
    seen = cover > 127
    if street:
        seen = _hide(canvas, seen, rng)
    image = canvas.image.reduce(2)
    if street:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.012) * size))
    light = _STREET_LIGHT if street else _SHOP_LIGHT
    image = _photograph(image, _folds(pose, cover, rng), rng, light)
    quality = int(rng.integers(25, 80) if street else rng.integers(85, 96))
    return image, Image.fromarray(255 * seen.astype(np.uint8)), quality, pose.pixels(size)


def _regions(pose: _Pose, size: int, closure_end: float) -> list[tuple[str, NDArray[np.bool_]]]:
    """(attribute, pixels [size, size]) of each part of the region of each local attribute."""
    x, y, half = _POCKET
    half += _MARGIN
    top, strip = _CLOSURE[0] - _MARGIN, _CLOSURE[1] + _MARGIN
    outlines = [
        ("neckline", _rectangle(-0.16, -0.13, 0.16, 0.19)),
        ("sleeve", _limb(pose.arms[0], [0.09, 0.085, 0.08])),
        ("sleeve", _limb(pose.arms[1], [0.09, 0.085, 0.08])),
        ("hem", _rectangle(-0.225, 0.42, 0.225, _FEET + _SHOE)),
        ("closure", _rectangle(-strip, top, strip, closure_end + _MARGIN)),
        ("pocket", _rectangle(x - half, y - half, x + half, y + half)),
    ]
    parts = []
    for name, outline in outlines:
        canvas = _Canvas(Image.new("L", (size, size)), pose)
        canvas.polygon(outline, 255)
        parts.append((name, np.asarray(canvas.image) > 0))
    return parts


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> Array:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def _limb(joints: Array, half_widths: Sequence[float]) -> Array:
    """Outline of a band along `joints` [n, 2] with the half width given at each joint."""
    steps = np.diff(joints, axis=0)
    normals = np.stack([-steps[:, 1], steps[:, 0]], axis=1) / np.linalg.norm(steps, axis=1, keepdims=True)
    at_joints = np.concatenate([normals[:1], 0.5 * (normals[1:] + normals[:-1]), normals[-1:]])
    offsets = at_joints * np.asarray(half_widths)[:, None]
    return np.concatenate([joints + offsets, (joints - offsets)[::-1]])


def _along(joints: Array, length: float) -> Array:
    """The first `length` of the polyline `joints`, as a polyline of as many points."""
    steps = np.linalg.norm(np.diff(joints, axis=0), axis=1)
    at = np.minimum(np.concatenate([[0.0], np.cumsum(steps)]), length)
    known = np.concatenate([[0.0], np.cumsum(steps)])
    points = np.stack([np.interp(at, known, joints[:, k]) for k in range(2)], axis=1)
    return points[: int(np.searchsorted(known, length)) + 1]


# Colours


class _Colours:
    """Colours of one image; luminances are chosen first, so that what must be seen is seen in any hue.

    Of a product, `family` draws the cloth and `photo` what is behind and in it; otherwise `rng` draws all.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        family: np.random.Generator | None = None,
        photo: np.random.Generator | None = None,
    ) -> None:
        family, photo = family or rng, photo or rng
        cloth = family.uniform(0.15, 0.85)
        while True:
            ink, detail = rng.uniform(0.02, 0.98, 2)
            if 0.22 <= abs(ink - cloth) <= 0.38 and abs(detail - cloth) >= 0.36 and abs(detail - ink) >= 0.25:
                break
        self.cloth = _colour(family, cloth)
        self.ink = _colour(rng, ink)
        self.detail = _colour(rng, detail)
        self.edge = _darker(self.cloth, 0.4) if cloth > 0.3 else _colour(rng, cloth + 0.3)
        self.inside = _darker(self.cloth, 0.6)
        self.skin = _colour(photo, _apart(photo, cloth, 0.2), saturation=0.5, hue=photo.uniform(0.02, 0.1))
        self.behind = _apart(photo, cloth, 0.1)
        self.luminance = cloth


def _darker(colour: _Colour, share: float) -> _Colour:
    r, g, b = (round(channel * share) for channel in colour)
    return r, g, b


def _apart(rng: np.random.Generator, luminance: float, distance: float) -> float:
    """A luminance at least `distance` from the given one."""
    while abs((found := rng.uniform(0.08, 0.95)) - luminance) < distance:
        pass
    return float(found)


def _colour(
    rng: np.random.Generator, luminance: float, saturation: float = 1.0, hue: float | None = None
) -> _Colour:
    """A colour of that luminance (Rec. 601 weights, 0 to 1), its saturation at most the one given."""
    hue = rng.random() if hue is None else hue
    pure = np.clip(np.abs((hue * 6.0 + np.array([0.0, 4.0, 2.0])) % 6.0 - 3.0) - 1.0, 0.0, 1.0)
    pure = 1.0 + rng.uniform(0.1, saturation) * (pure - 1.0)
    own = float(pure @ [0.299, 0.587, 0.114])
    mixed = (
        pure * luminance / own if luminance < own else pure + (1.0 - pure) * (luminance - own) / (1.0 - own)
    )
    r, g, b = (round(255.0 * channel) for channel in mixed.tolist())
    return r, g, b


# What is behind, under and in front of the garment


def _background(size: int, colours: _Colours, rng: np.random.Generator) -> Image.Image:
    first = np.array(_colour(rng, colours.behind))
    kind = rng.integers(4)  # plain, gradient, blotches, bands
    if kind == 0:
        image = Image.new("RGB", (size, size), tuple(first.tolist()))
    else:
        second = np.array(_colour(rng, float(np.clip(colours.behind + rng.uniform(-0.25, 0.25), 0.0, 1.0))))
        if kind == 2:
            weight = rng.random((n := int(rng.integers(3, 16)), n))
        else:
            x, y = np.meshgrid(np.linspace(0.0, 1.0, 64), np.linspace(0.0, 1.0, 64))
            angle = rng.uniform(0.0, 2.0 * math.pi)
            weight = 0.5 + 0.5 * (math.cos(angle) * (x - 0.5) + math.sin(angle) * (y - 0.5)) / 0.71
            if kind == 3:
                weight = (weight * rng.uniform(3.0, 14.0) % 1.0 > 0.5).astype(np.float64)
        small = first + (second - first) * weight[:, :, None]
        image = Image.fromarray(small.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    _scatter(image, int(rng.integers(0, 7)), rng)
    return image


def _scatter(image: Image.Image, count: int, rng: np.random.Generator) -> None:
    """Draw discs, squares and bars of any colour anywhere."""
    size, pen = image.width, ImageDraw.Draw(image)
    for _ in range(count):
        fill = _colour(rng, rng.uniform(0.05, 0.95))
        x, y = rng.uniform(0.0, size, 2)
        w, h = rng.uniform(0.03, 0.25, 2) * size
        match rng.integers(3):
            case 0:
                pen.ellipse([x - w, y - h, x + w, y + h], fill=fill)
            case 1:
                turn = rng.uniform(0.0, math.pi) + np.array([0.0, 0.5, 1.0, 1.5]) * math.pi
                pen.polygon([(x + w * math.cos(t), y + w * math.sin(t)) for t in turn], fill=fill)
            case _:
                pen.line([x - 2 * w, y - 2 * h, x + 2 * w, y + 2 * h], fill=fill, width=max(1, size // 40))


def _clutter(size: int, colours: _Colours, rng: np.random.Generator) -> Image.Image:
    """A street: a background as above with much more before it."""
    image = _background(size, colours, rng)
    _scatter(image, int(rng.integers(8, 20)), rng)
    return image


def _backdrop(size: int, rng: np.random.Generator) -> Image.Image:
    """A shop's plain ground, nearly white, a little darker towards the floor."""
    top = np.array(_colour(rng, rng.uniform(0.86, 0.97), saturation=0.15))
    fade = np.linspace(1.0, 1.0 - rng.uniform(0.0, 0.06), size)[:, None, None]
    return Image.fromarray(np.broadcast_to((top * fade).astype(np.uint8), (size, size, 3)).copy())


def _draw_figure(canvas: _Canvas, colours: _Colours, rng: np.random.Generator) -> None:
    """Legs in trousers, shorts or tights, arms, neck and head; the garment has no influence on them."""
    pose, skin, edge = canvas.pose, colours.skin, _darker(colours.skin, 0.55)
    wear = _colour(rng, rng.uniform(0.08, 0.92))
    shoe = _colour(rng, rng.uniform(0.05, 0.9))
    length = rng.choice([0.1, 0.14, 0.38])
    for leg in pose.legs:
        canvas.polygon(_limb(leg, [0.115, 0.075, 0.05]), skin, edge)
        canvas.polygon(_limb(leg[1] + np.array([[-0.03, 0.0], [0.03, 0.0]]), [0.004, 0.004]), edge)
        covered = _along(leg, length)
        canvas.polygon(_limb(covered, [0.12, 0.085, 0.06][: len(covered)]), wear, edge)
        canvas.disc(leg[-1], _SHOE, shoe, edge)
    torso = np.linspace(0.05, 0.47, 12)
    canvas.polygon(_mirrored(0.97 * pose.half_width(torso), torso), skin, edge)
    top = np.linspace(0.40, 0.50, 5)
    canvas.polygon(_mirrored(pose.half_width(top) + 0.003, top), wear, edge)
    for arm in pose.arms:
        canvas.polygon(_limb(arm, [0.058, 0.05, 0.04]), skin, edge)
        canvas.disc(arm[-1], 0.045, skin, edge)
        canvas.disc(arm[0], 0.056, skin)
    canvas.polygon(_rectangle(-0.066, -0.14, 0.066, 0.06), skin, edge)
    hair, radius = _colour(rng, rng.uniform(0.03, 0.8)), rng.uniform(0.11, 0.14)
    canvas.disc([0.0, -0.24], radius + 0.02, hair)
    canvas.disc([0.0, -0.22], radius, skin, edge)


def _mirrored(x: Array, y: Array) -> Array:
    """Outline through (x, y) going down and (-x, y) coming up."""
    return np.concatenate([np.stack([x, y], axis=1), np.stack([-x, y], axis=1)[::-1]])


def _draw_occluders(
    canvas: _Canvas, parts: Sequence[tuple[str, NDArray[np.bool_]]], rng: np.random.Generator
) -> None:
    """A bag, strands of hair or a limb in front; left away where it would hide over a sixth of a region."""
    for _ in range(rng.integers(0, 3)):
        layer = _occluder(canvas, rng)
        hidden = np.asarray(layer.reduce(2)) > 0
        if all((hidden & part).sum() * 6 <= part.sum() for name, part in parts if name in LOCAL):
            canvas.image.paste(_colour(rng, rng.uniform(0.05, 0.95)), mask=layer)


def _hide(canvas: _Canvas, cloth: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw what is before a garment in the street; return where its cloth is to be seen."""
    seen = cloth
    for _ in range(rng.integers(0, 5)):
        layer = _occluder(canvas, rng)
        left = seen & (np.asarray(layer.reduce(2)) == 0)
        if left.sum() >= (1.0 - _MOST_HIDDEN) * cloth.sum():
            canvas.image.paste(_colour(rng, rng.uniform(0.05, 0.95)), mask=layer)
            seen = left
    return seen


def _occluder(canvas: _Canvas, rng: np.random.Generator) -> Image.Image:
    """Where a bag, strands of hair or a limb is, 255 on 0."""
    layer = _Canvas(Image.new("L", canvas.image.size), canvas.pose)
    x, y, side = rng.uniform(-0.45, 0.45), rng.uniform(0.0, _FEET), rng.choice([-1.0, 1.0])
    match rng.integers(3):
        case 0:
            layer.polygon(_rectangle(x - 0.08, y - 0.06, x + 0.08, y + rng.uniform(0.02, 0.1)), 255)
            layer.line([[x - 0.07, y - 0.05], [x, y - 0.2], [x + 0.07, y - 0.05]], 255, 0.014)
        case 1:
            for strand in rng.uniform(0.14, 0.2, 4):
                end = [side * (strand + rng.uniform(0.0, 0.06)), rng.uniform(0.05, 0.3)]
                layer.line([[side * 0.12, -0.2], [side * strand, -0.02], end], 255, 0.022)
        case _:
            length, angle = rng.uniform(0.2, 0.5), rng.uniform(-0.9, 0.9)
            tip = [x - side * length * math.cos(angle), y + length * math.sin(angle)]
            layer.polygon(_limb(np.array([[x + side * 0.6, y], [x, y], tip]), [0.05, 0.045, 0.035]), 255)
    return layer.image


def _folds(pose: _Pose, cover: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
    """Brightness that folds and weave give to the cloth; 1 where `cover` [size, size] is 0 and on average."""
    x, y = pose.body(len(cover))
    phase = rng.uniform(0.0, 2.0 * math.pi, 2)
    fold = np.sin(rng.uniform(8.0, 22.0) * x + phase[0] + 2.0 * np.sin(5.0 * y + phase[1]))
    weave = rng.standard_normal(fold.shape, dtype=np.float32)
    relief = rng.uniform(0.0, 0.1) * fold + rng.uniform(0.0, 0.05) * weave
    return np.asarray(1.0 + relief * (cover / 255.0), dtype=np.float32)


class _Light(NamedTuple):
    """How light and camera may be."""

    fall: float = 0.25  # of light from a side, at most
    gain: tuple[float, float] = (0.75, 1.15)
    cast: tuple[float, float] = (0.88, 1.12)  # of each channel
    noise: float = 7.0  # standard deviation in grey levels, at most


_SHOP_LIGHT = _Light(fall=0.04, gain=(0.97, 1.03), cast=(0.98, 1.02), noise=1.5)
_STREET_LIGHT = _Light(fall=0.45, gain=(0.55, 1.3), cast=(0.8, 1.2), noise=12.0)
_OTHER_LIGHT = _Light()


def _photograph(
    image: Image.Image, brightness: NDArray[np.float32], rng: np.random.Generator, how: _Light = _OTHER_LIGHT
) -> Image.Image:
    """Light from a side, gain, colour cast and sensor noise."""
    size = image.width
    axis = np.linspace(-1.0, 1.0, size, dtype=np.float32)
    angle, fall = rng.uniform(0.0, 2.0 * math.pi), rng.uniform(0.0, how.fall)
    light = (1.0 + fall * (math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None])) * brightness
    cast = (rng.uniform(*how.gain) * rng.uniform(*how.cast, 3)).astype(np.float32)
    noise = rng.standard_normal((size, size, 3), dtype=np.float32) * np.float32(rng.uniform(0.0, how.noise))
    lit = np.asarray(image, dtype=np.float32) * light[:, :, None] * cast + noise
    return Image.fromarray(np.clip(lit + 0.5, 0.0, 255.0).astype(np.uint8))


# The garment


class _Emblem(NamedTuple):
    """A polygon or star on the wearer's right of the chest, opposite the pocket."""

    outline: Array  # in body coordinates
    hole: Array
    colour: _Colour
    inner: _Colour


@dataclass(frozen=True)
class _Details:
    """What makes a product this one among those of equal attributes; by default nothing."""

    angle: float = 0.0  # of the pattern
    scale: float = 1.0  # of its period
    sleeves: _Colour | None = None
    band: tuple[float, float, _Colour] | None = None  # across the chest: top, bottom
    emblem: _Emblem | None = None

    @staticmethod
    def draw(rng: np.random.Generator, colours: _Colours) -> _Details:
        def accent() -> _Colour:
            return _colour(rng, _apart(rng, colours.luminance, 0.25))

        angle, scale = rng.uniform(-0.5, 0.5), math.exp(rng.uniform(-0.35, 0.35))
        sleeves, top, width, band = accent(), rng.uniform(0.2, 0.31), rng.uniform(0.015, 0.045), accent()
        points, star, turn = int(rng.integers(3, 7)), rng.random() < 0.5, rng.uniform(0.0, 2.0 * math.pi)
        radius, x, y = rng.uniform(0.045, 0.075), rng.uniform(-0.155, -0.14), rng.uniform(0.235, 0.275)
        turns = turn + np.arange(2 * points) * math.pi / points
        reach = radius * np.where(
            np.arange(2 * points) % 2, 0.45 if star else math.cos(math.pi / points), 1.0
        )
        outline, middle = np.stack([reach * np.cos(turns), reach * np.sin(turns)], axis=1), np.array([x, y])
        emblem = _Emblem(outline + middle, 0.5 * outline + middle, accent(), accent())
        has_sleeves, has_band, has_emblem = rng.random(3) < [0.3, 0.35, 0.8]
        return _Details(
            angle,
            scale,
            sleeves if has_sleeves else None,
            (top, top + width, band) if has_band else None,
            emblem if has_emblem else None,
        )


_NO_DETAILS = _Details()


def _draw_emblem(canvas: _Canvas, emblem: _Emblem, cloth: Image.Image) -> None:
    """Draw it where there is cloth."""
    for outline, colour in ((emblem.outline, emblem.colour), (emblem.hole, emblem.inner)):
        layer = _Canvas(Image.new("L", canvas.image.size), canvas.pose)
        layer.polygon(outline, 255)
        canvas.image.paste(colour, mask=ImageChops.multiply(layer.image, cloth))


def _draw_cloth(
    canvas: _Canvas,
    value: dict[str, int],
    hem: float,
    worn: bool,
    colours: _Colours,
    rng: np.random.Generator,
    details: _Details = _NO_DETAILS,
) -> Image.Image:
    """Body and sleeves with their pattern, edges and trims; the mask [2 size, 2 size] of the cloth."""
    pose = canvas.pose
    length = _SLEEVE[value["sleeve"]] + rng.uniform(-0.012, 0.012)
    widen = rng.uniform(0.0, 0.025)
    sleeves = []
    if value["sleeve"] > 0:
        for arm in pose.arms:
            covered = _along(arm, length)
            ease = [0.072, 0.064 + 0.5 * widen, 0.055 + widen][: len(covered)]
            sleeves.append(_limb(covered, ease))
    side = np.linspace(0.04, hem, 24)
    right = np.stack([pose.half_width(side), side], axis=1)
    sag = rng.uniform(-0.015, 0.03)
    across = np.linspace(1.0, -1.0, 9)
    bottom = np.stack([across * right[-1, 0], hem + sag * (1.0 - across**2)], axis=1)
    body = np.concatenate([[[-_NECK, -0.02], [_NECK, -0.02]], right, bottom, (right * [-1.0, 1.0])[::-1]])
    opening = _opening(value["neckline"])

    mask = _Canvas(Image.new("L", canvas.image.size), pose)
    for outline in (body, *sleeves):
        mask.polygon(outline, 255)
    if opening is not None:
        mask.polygon(opening, 0)
        if not worn:
            canvas.polygon(opening, colours.inside)
    canvas.image.paste(colours.cloth, mask=mask.image)
    ink = _ink(canvas, value["pattern"], rng, details)
    canvas.image.paste(colours.ink, mask=ImageChops.multiply(ink, mask.image))
    if details.sleeves is not None:
        for outline in sleeves:
            canvas.polygon(outline, details.sleeves)
    if details.band is not None:
        top, end, colour = details.band
        height = np.linspace(top, end, 3)
        canvas.polygon(_mirrored(pose.half_width(height), height), colour)

    for outline in sleeves:
        canvas.line(outline, colours.edge, 0.01)
    shoulders = np.concatenate([body[1:], body[:1]])
    canvas.line(shoulders, colours.edge, 0.01)
    if rng.random() < 0.5:
        for outline in sleeves:
            middle = len(outline) // 2
            canvas.line(outline[middle - 1 : middle + 1], colours.detail, rng.uniform(0.012, 0.03))
    canvas.line(bottom, colours.detail, rng.uniform(0.025, 0.04))
    return mask.image


def _ink(canvas: _Canvas, pattern: int, rng: np.random.Generator, details: _Details) -> Image.Image:
    """How much of the second colour the cloth has at each pixel of the image."""
    x, y = canvas.pose.body(canvas.full)
    if details.angle != 0.0:
        cos, sin = math.cos(details.angle), math.sin(details.angle)
        x, y = cos * x - sin * y, sin * x + cos * y
    period = rng.uniform(0.095, 0.13) * details.scale
    phase = rng.uniform(0.0, 1.0, 2)
    u, v = x / period + phase[0], y / period + phase[1]
    name = ATTRIBUTES["pattern"][pattern]
    if name == "solid":
        ink = np.zeros(u.shape, dtype=np.bool_)
    elif name == "striped":
        ink = (u if rng.random() < 0.5 else v) % 1.0 < 0.5
    elif name == "checked":
        ink = 0.5 * (u % 1.0 < 0.5) + 0.5 * (v % 1.0 < 0.5)
    elif name == "zigzag":
        ink = (v + 0.8 * np.abs(u * 0.7 % 1.0 - 0.5)) % 1.0 < 0.5
    else:
        flower = name == "floral"
        u, v = (u / 1.5, v / 1.5) if flower else (u, v)
        row = np.floor(v)
        du, dv = (u + 0.5 * (row % 2.0)) % 1.0 - 0.5, v - row - 0.5
        radius = np.hypot(du, dv)
        ink = radius < (0.34 + 0.14 * np.cos(5.0 * np.arctan2(dv, du)) if flower else 0.3)
        if flower:
            ink = ink & (radius > 0.12)
    return Image.fromarray((255.0 * ink).astype(np.uint8))


def _opening(neckline: int) -> Array | None:
    """The part cut out of the garment's body, None for the high neckline."""
    depth = _NECK_DEPTH[neckline]
    match ATTRIBUTES["neckline"][neckline]:
        case "round":
            t = np.linspace(0.0, math.pi, 17)
            return np.stack([_NECK * np.cos(t), -0.025 + (depth + 0.025) * np.sin(t)], axis=1)
        case "square":
            return _rectangle(-_NECK, -0.03, _NECK, depth)
        case "high":
            return None
        case _:
            return np.array([[-_NECK, -0.025], [_NECK, -0.025], [0.0, depth]])


def _draw_neckline(canvas: _Canvas, neckline: int, colours: _Colours, rng: np.random.Generator) -> None:
    opening = _opening(neckline)
    trim = colours.detail if rng.random() < 0.5 else colours.edge
    if opening is None:
        canvas.polygon(_rectangle(-0.085, -0.09, 0.085, 0.01), colours.cloth, trim)
        canvas.line([[-0.085, -0.04], [0.085, -0.04]], trim, 0.014)
    elif ATTRIBUTES["neckline"][neckline] == "collar":
        for side in (-1.0, 1.0):
            flap = np.array([[0.06, -0.07], [0.115, -0.035], [0.15, 0.085], [0.075, 0.125], [0.0, 0.08]]) * [
                side,
                1.0,
            ]
            canvas.polygon(flap, colours.cloth, trim)
    else:
        inner = opening if ATTRIBUTES["neckline"][neckline] == "round" else np.roll(opening, -1, axis=0)
        canvas.line(inner, trim, 0.02)


def _draw_closure(
    canvas: _Canvas, closure: int, bottom: float, colours: _Colours, rng: np.random.Generator
) -> None:
    (top, half), detail, edge = _CLOSURE, colours.detail, colours.edge
    start, end = top + 0.015, bottom - 0.01
    name = ATTRIBUTES["closure"][closure]
    canvas.polygon(_rectangle(-half, top, half, bottom), colours.cloth, edge)
    match name:
        case "concealed":
            for x in (-half, half):
                canvas.line([[x, top], [x, bottom]], detail, 0.022)
        case "buttons":
            for y in np.arange(start + 0.025, end, rng.uniform(0.07, 0.08)):
                canvas.disc([0.0, y], 0.03, detail)
        case "zip":
            canvas.line([[0.0, start], [0.0, end]], detail, 0.022)
            for y in np.arange(start + 0.01, end, 0.036):
                canvas.line([[-0.042, y], [0.042, y]], detail, 0.014)
        case "laces":
            rungs = np.linspace(start, end, max(2, round((end - start) / 0.08)) + 1)
            for upper, lower in pairwise(rungs):
                canvas.line([[-half, upper], [half, lower]], detail, 0.02)
                canvas.line([[half, upper], [-half, lower]], detail, 0.02)


def _draw_pocket(canvas: _Canvas, pocket: int, colours: _Colours, rng: np.random.Generator) -> None:
    x, y, half = _POCKET
    bag = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 0.55], [0.0, 1.0], [-1.0, 0.55]]) * half + [x, y]
    detail, edge = colours.detail, colours.edge
    match ATTRIBUTES["pocket"][pocket]:
        case "slit":
            tilt = rng.uniform(0.0, 0.02)
            canvas.line([[x - tilt, y - half], [x + tilt, y + half]], detail, 0.04)
        case "patch":
            canvas.polygon(bag, colours.cloth)
            canvas.line([*bag, bag[0]], detail, 0.02)
        case "flap":
            canvas.polygon(bag, colours.cloth, edge)
            flap = np.array([[-1.05, -1.0], [1.05, -1.0], [1.05, -0.3], [0.0, 0.1], [-1.05, -0.3]]) * half + [
                x,
                y,
            ]
            canvas.polygon(flap, detail, edge)
        case "welt":
            tilt = rng.uniform(0.0, 0.02)
            canvas.line([[x - half, y + tilt], [x + half, y - tilt]], detail, 0.04)


def _main() -> None:
    job = json.load(sys.stdin)
    json.dump(_draw_share(**job), sys.stdout)


if __name__ == "__main__":
    _main()
