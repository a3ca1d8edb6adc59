"""Photographs to batches of 48 normalised inputs of 224 pixels: placket.data.Loader against PyTorch's way.

Every arm decodes, resizes the short side, cuts the centre square and normalises, on two processes or threads.
A timing is an epoch of 384 photographs: it begins with nothing decoded ahead and ends with the last batch, so
that no arm works during another's time. Peers' workers live through all epochs and are warm; our threads are
started anew for each, within its time, and what they begin of the next epoch before they are stopped counts
as theirs. The photographs are those of PLACKET_DATA, the large ones mosaics of them at quality 90, as links
and files in a temporary folder.

torchcodec is no peer here: the wheels of 0.16 and 0.17, the first that decode JPEG without FFmpeg, link
CUDA's libraries and do not load beside a torch for the CPU. It decodes by libjpeg-turbo, as simplejpeg does.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from paired import Record, compare
from photographs import evenly, folder
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import placket.data
from placket.data import Loader, Preprocess, Split

PHOTOGRAPHS, BATCH, SIZE, WORKERS = 384, 48, 224, 2
# By row of a picture [SIZE, SIZE * 3], so that one vector loop takes all three channels.
MEAN = torch.tensor((0.485, 0.456, 0.406)).repeat(SIZE)
STD = torch.tensor((0.229, 0.224, 0.225)).repeat(SIZE)

Prepare = Callable[[str], Tensor]  # from a path to a picture [SIZE, SIZE, 3] of 8 bits
Epoch = Callable[[], Iterator[Tensor]]


def window(height: int, width: int) -> tuple[int, int, int, int]:
    """Return height, width, top and left of torchvision's Resize and CenterCrop."""
    short = min(height, width)
    height, width = int(SIZE * height / short), int(SIZE * width / short)
    return height, width, round((height - SIZE) / 2), round((width - SIZE) / 2)


def by_pillow(path: str) -> Tensor:
    with Image.open(path) as file:
        image = file.convert("RGB")
    height, width, top, left = window(image.height, image.width)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized.crop((left, top, left + SIZE, top + SIZE))))


def by_simplejpeg(path: str) -> Tensor:
    """Resized by torch's 8-bit kernel, which is faster than Pillow's."""
    image = torch.from_numpy(simplejpeg.decode_jpeg(Path(path).read_bytes()))
    height, width, top, left = window(*image.shape[:2])
    planes = image.permute(2, 0, 1)[None]
    resized = F.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    return resized[0, :, top : top + SIZE, left : left + SIZE].permute(1, 2, 0).contiguous()


def normalise(picture: Tensor, out: Tensor) -> None:
    """Write what torchvision's ToTensor and Normalize give, in every bit, to ``out``, [SIZE, SIZE, 3]."""
    rows = torch.div(picture.view(SIZE, -1), 255, out=out.view(SIZE, -1))
    rows.sub_(MEAN).div_(STD)


class Photographs(Dataset[Tensor]):
    def __init__(self, paths: Sequence[str], prepare: Prepare) -> None:
        self.paths, self.prepare = paths, prepare

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        out = torch.empty(SIZE, SIZE, 3)
        normalise(self.prepare(self.paths[index]), out)
        return out


def with_workers(paths: Sequence[str], prepare: Prepare) -> Epoch:
    """Return torch's DataLoader; its workers stack the images in shared memory."""
    data = Photographs(paths, prepare)
    loader = DataLoader(data, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)
    return lambda: (images.permute(0, 3, 1, 2) for images in loader)


def with_threads(paths: Sequence[str], prepare: Prepare, pool: ThreadPoolExecutor) -> Epoch:
    """Return an epoch prepared by threads one batch ahead, each image written to its place in the batch."""

    def write(path: str, out: Tensor) -> None:
        normalise(prepare(path), out)

    def begin(start: int) -> tuple[Tensor, list[Future[None]]]:
        images = torch.empty(BATCH, SIZE, SIZE, 3)
        batch = paths[start : start + BATCH]
        return images, [pool.submit(write, path, out) for path, out in zip(batch, images, strict=True)]

    def epoch() -> Iterator[Tensor]:
        ahead = begin(0)
        for start in range(BATCH, len(paths) + 1, BATCH):
            images, written = ahead
            if start < len(paths):
                ahead = begin(start)
            for row in written:
                row.result()
            yield images.permute(0, 3, 1, 2)

    return epoch


def ours(split: Split, threads: int = WORKERS) -> Epoch:
    def epoch() -> Iterator[Tensor]:
        inputs = Preprocess(size=SIZE)
        for batch in Loader(split, batch=BATCH, shuffle=False, preprocess=inputs, threads=threads):
            yield batch.images

    return epoch


def run_through(epoch: Epoch) -> Callable[[], None]:
    def run() -> None:
        for _ in epoch():
            pass

    return run


def check_batches(ours: Epoch, theirs: Epoch, tolerance: float) -> None:
    for mine, other in zip(ours(), theirs(), strict=True):
        for images in (mine, other):
            assert images.shape == (BATCH, 3, SIZE, SIZE)
            assert images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance)


def milliseconds_of_next(split: Split) -> float:
    """Return the median processor time of the main thread for a batch that is ready."""
    loader = Loader(split, batch=BATCH, preprocess=Preprocess(size=SIZE))
    spent = []
    for _ in range(6):
        batches = iter(loader)
        for _ in range(len(loader)):
            time.sleep(0.05)
            start = time.thread_time()
            next(batches)
            spent.append(time.thread_time() - start)
    return statistics.median(spent) * 1e3


def mosaic(photographs: Sequence[Path], out: Path) -> None:
    """Write a photograph of 1,026 x 768 pixels made of six."""
    image = Image.new("RGB", (1026, 768))
    for i, photograph in enumerate(photographs):
        with Image.open(photograph) as tile:
            image.paste(ImageOps.fit(tile.convert("RGB"), (342, 384)), (i % 3 * 342, i // 3 * 384))
    image.save(out, quality=90)


def make_sets(root: Path) -> dict[str, Split]:
    """Return three sets of photographs by what tells their size."""
    street = evenly(folder("co-parsing/photos"), 806)
    sets = {
        "300 pixels long": evenly(folder("deepfashion-fine6"), PHOTOGRAPHS),
        "192 x 288": evenly(folder("hm"), PHOTOGRAPHS),
        "1026 x 768": [root / f"{i}.jpg" for i in range(PHOTOGRAPHS)],
    }
    for i, out in enumerate(sets["1026 x 768"]):
        mosaic([street[(6 * i + tile) % len(street)] for tile in range(6)], out)
    splits = {}
    for name, photographs in sets.items():
        images = root / name / "images"
        images.mkdir(parents=True)
        for i, photograph in enumerate(photographs):
            (images / f"{i:03}.jpg").symlink_to(photograph)
        splits[name] = placket.data.open(root / name).split("train")
    return splits


def bench(name: str, split: Split) -> list[Record]:
    own = ours(split)
    with ThreadPoolExecutor(WORKERS) as pool:
        peers = {
            "Pillow, DataLoader": with_workers(split.paths, by_pillow),
            "simplejpeg, DataLoader": with_workers(split.paths, by_simplejpeg),
            "simplejpeg, threads": with_threads(split.paths, by_simplejpeg, pool),
        }
        for peer, epoch in peers.items():
            # torch's kernel is not Pillow's: up to one grey level after each of two passes.
            exact = peer.startswith("Pillow")
            check_batches(own, epoch, tolerance=0 if exact else 2.01 / 255 / float(STD.min()))
        title = f"loading {PHOTOGRAPHS} photographs of {name}"
        record = compare(title, run_through(own), {peer: run_through(epoch) for peer, epoch in peers.items()})
    one_thread = {"one thread": run_through(ours(split, threads=1))}
    return [record, compare(f"two threads, {title}", run_through(own), one_thread)]


def run() -> list[Record]:
    torch.set_num_threads(1)  # each arm has its own threads
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for name, split in make_sets(Path(folder)).items():
            records += bench(name, split)
            records[-2]["next_ms"] = milliseconds_of_next(split)
            print(f"main thread, a batch of {name}: {records[-2]['next_ms']:.3g} ms", flush=True)
    return records


if __name__ == "__main__":
    run()
