from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


def _photograph(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours with edges and some noise, so that chroma subsampling and ringing show."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    image = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    image[height // 3 : height // 2, width // 4 : width // 2] = [200, 10, 30]
    return np.clip(image + rng.integers(-6, 7, image.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def photograph() -> Callable[..., NDArray[np.uint8]]:
    return _photograph


META = {
    "garments": {
        "ATTRIBUTES": ["sleeve", "collar"],
        "ATTRIBUTES_NUM": {"sleeve": 3, "collar": 2},
        "VALUES": {"sleeve": ["none", "short", "long"], "collar": ["round", "v"]},
    }
}


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A data set of six training and three test images, with everything that the layout can hold."""
    root = tmp_path / "garments"
    (root / "img").mkdir(parents=True)
    for i in range(9):
        Image.fromarray(_photograph(40 + i, 30 + 2 * i, i)).save(root / "img" / f"{i}.jpg")
    lists = {
        "filenames_train": [f"img/{i}.jpg" for i in range(6)],
        "label_train": ["0 0 0 1 0", "1 0 1 1 1", "2 0 2", "3 0 0 0 1 1 1", "4 1 0", "5 0 1 1 1"],
        "bbox_train": [f"{i} 2 {20 + i} 33" for i in range(6)],
        "filenames_test": [f"img/{i}.jpg" for i in range(6, 9)],
        "label_test": ["0 0 0 1 0", "1 0 1 1 1", "2 0 0 1 1"],
        "query_test": ["0 0 0", "0 1 0"],
        "candidate_test": ["1 0 1", "1 1 1", "2 0 0", "2 1 1"],
        "bbox_test": ["0 0 42 46", "1 1 40 41", "2 2 30 30"],
        "regions_test": ["0 0 1 2 9 9", "0 0 20 2 29 9", "1 1 3 3 8 9"],
        "captions_test": ["0\ta plain top", "1\ta v neck", "2\tanother"],
    }
    for stem, lines in lists.items():
        (root / f"{stem}.txt").write_text("\n".join(lines) + "\n")
    (root / "meta.json").write_text(json.dumps(META))
    return root
