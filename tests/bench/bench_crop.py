"""region_box and crop_resize for a step of 48 images, against the published way and plain PyTorch."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from paired import Record, compare
from PIL import Image
from torch import Tensor

from placket import ops

IMAGES, SIDE, VIEW, THRESHOLD = 48, 512, 224, 0.1
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def square(left: int, top: int, w: int, h: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The published integer steps from the bounding box in the view to the box in the image."""
    d = max(w, h)
    x, y = left + w // 2, top + h // 2
    x = VIEW - d if x + d // 2 > VIEW else max(0, x - d // 2)
    y = VIEW - d if y + d // 2 > VIEW else max(0, y - d // 2)
    short = min(size)
    x, y, d = (int(length / VIEW * short) for length in (x, y, d))
    x, y = x + (size[1] - short) // 2, y + (size[0] - short) // 2
    return x, y, x + d, y + d


def published_box(attention: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    up = cv2.resize(attention, (VIEW, VIEW), interpolation=cv2.INTER_LINEAR)
    scaled = np.uint8((up - up.min()) / (up.max() - up.min()) * 255)
    _, mask = cv2.threshold(scaled, 255 * THRESHOLD, 255, cv2.THRESH_BINARY)
    return square(*cv2.boundingRect(mask), size)


def published(attention: Tensor, images: list[Image.Image]) -> Tensor:
    """OpenCV for each map, Pillow for each image, then what torchvision's ToTensor and Normalize do."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    crops = []
    for map, image in zip(attention.cpu().numpy(), images, strict=True):
        box = published_box(map, (image.height, image.width))
        crop = image.crop(box).resize((VIEW, VIEW), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous()
        crops.append(pixels.float().div(255).sub_(mean).div_(std))
    return torch.stack(crops).to(DEVICE)


def plain_boxes(attention: Tensor, sizes: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    up = F.interpolate(attention[:, None], size=(VIEW, VIEW), mode="bilinear")[:, 0]
    least, greatest = up.amin((1, 2), True), up.amax((1, 2), True)
    kept = ((up - least) / (greatest - least) * 255).byte() > int(255 * THRESHOLD)
    columns, rows = kept.any(1).byte(), kept.any(2).byte()
    left, top = columns.argmax(1), rows.argmax(1)
    w = VIEW - columns.flip(1).argmax(1) - left
    h = VIEW - rows.flip(1).argmax(1) - top
    bounds = torch.stack([left, top, w, h], 1).tolist()
    return [square(*bound, size) for bound, size in zip(bounds, sizes, strict=True)]


def plain(attention: Tensor, images: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
    """Batched maps, torch's own antialiased resize (8 bits on the CPU, as torchvision), one normalisation."""
    crops = []
    for image, (x0, y0, x1, y1) in zip(images, plain_boxes(attention, sizes), strict=True):
        cut = image[:, :, y0:y1, x0:x1]
        if cut.is_cuda:
            cut = cut.float()  # there is no kernel for 8 bits
        crops.append(F.interpolate(cut, size=(VIEW, VIEW), mode="bilinear", antialias=True))
    mean = torch.tensor(MEAN, device=DEVICE)[:, None, None]
    std = torch.tensor(STD, device=DEVICE)[:, None, None]
    return torch.cat(crops).float().div_(255).sub_(mean).div_(std)


def peaked_maps() -> Tensor:
    """Softmax maps with one region each, well inside: their boxes take a tenth to half of the view."""
    y, x = torch.arange(14.0)[:, None], torch.arange(14.0)
    middle = 4 + 6 * torch.rand(2, IMAGES, 1, 1)
    distance = (y - middle[0]) ** 2 + (x - middle[1]) ** 2
    spread = 1 + 3 * torch.rand(IMAGES, 1, 1)
    return torch.softmax((-distance / spread).flatten(1), 1).view(IMAGES, 14, 14)


def run() -> list[Record]:
    torch.manual_seed(0)
    attention = peaked_maps().to(DEVICE)
    coarse = torch.randint(256, (IMAGES, 3, 32, 32)).float()
    images = F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").clamp(0, 255).byte()
    images = images.permute(0, 2, 3, 1).contiguous()
    pillow_images = [Image.fromarray(image.numpy()) for image in images]
    images = images.to(DEVICE)
    torch_images = [image[None].permute(0, 3, 1, 2) for image in images]
    pixels = images.flatten()
    index = torch.arange(IMAGES, device=DEVICE)
    offsets, sizes = index * SIDE * SIDE * 3, torch.full((IMAGES, 2), SIDE, device=DEVICE)
    size_list = [(SIDE, SIDE)] * IMAGES

    def boxes_ours() -> Tensor:
        return ops.region_box(attention, sizes, THRESHOLD, VIEW)

    def boxes_published() -> list[tuple[int, int, int, int]]:
        return [published_box(map, (SIDE, SIDE)) for map in attention.cpu().numpy()]

    def boxes_plain() -> list[tuple[int, int, int, int]]:
        return plain_boxes(attention, size_list)

    def same_boxes(ours: Tensor, theirs: list[tuple[int, int, int, int]]) -> None:
        assert ours.tolist() == [list(box) for box in theirs]

    def crops_ours() -> Tensor:
        return ops.crop_resize(pixels, offsets, sizes, boxes_ours(), index, VIEW, VIEW, MEAN, STD)

    def crops_published() -> Tensor:
        return published(attention, pillow_images)

    def crops_plain() -> Tensor:
        return plain(attention, torch_images, size_list)

    def same_crops(ours: Tensor, theirs: Tensor) -> None:
        # torch's kernels are not Pillow's: up to one grey level after each of two passes.
        assert (ours - theirs).abs().max() < 2.01 / 255 / min(STD)

    assert torch.equal(crops_ours(), crops_published())
    name = f"{IMAGES} images of {SIDE} x {SIDE}"
    return [
        compare(
            f"region_box, {name}",
            boxes_ours,
            {"published": boxes_published, "PyTorch": boxes_plain},
            check=same_boxes,
        ),
        compare(
            f"region_box and crop_resize, {name}",
            crops_ours,
            {"published": crops_published, "PyTorch": crops_plain},
            check=same_crops,
        ),
    ]


if __name__ == "__main__":
    run()
