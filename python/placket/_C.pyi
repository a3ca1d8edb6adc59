"""placket's C++ core; its operators are torch.ops.placket.*"""

from collections.abc import Callable, Sequence
from typing import SupportsInt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

MAX_PIXELS: int

class Augment:
    def __init__(self, flip: float = ..., crop_scale: float = ...) -> None: ...
    @property
    def flip(self) -> float: ...
    @property
    def crop_scale(self) -> float: ...

class Batch:
    @property
    def plan(self) -> BatchPlan: ...
    @property
    def images(self) -> Tensor: ...
    @property
    def attributes(self) -> Tensor: ...
    @property
    def values(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def pixels(self) -> Tensor: ...
    @property
    def offsets(self) -> Tensor: ...
    @property
    def sizes(self) -> Tensor: ...

class BatchPlan:
    @property
    def epoch(self) -> int: ...
    @property
    def positions(self) -> NDArray[np.int64]: ...
    @property
    def images(self) -> NDArray[np.int64]: ...
    @property
    def attributes(self) -> NDArray[np.int64]: ...
    @property
    def values(self) -> NDArray[np.int64]: ...

class BatchSource:
    def plan(self, step: int) -> BatchPlan: ...
    @property
    def steps_per_epoch(self) -> int: ...

class ImageList:
    def __init__(self, paths: Sequence[str], boxes: ArrayLike | None = ...) -> None: ...
    def __len__(self) -> int: ...
    @property
    def paths(self) -> list[str]: ...

class LabelTable:
    def __init__(
        self, begin: ArrayLike, attribute: ArrayLike, value: ArrayLike, values: Sequence[int]
    ) -> None: ...
    def __len__(self) -> int: ...

class Loader:
    def __init__(
        self,
        images: ImageList,
        labels: LabelTable | None,
        source: BatchSource,
        *,
        preprocess: Preprocess = ...,
        augment: Augment = ...,
        seed: int = ...,
        keep_pixels: bool = ...,
        threads: int = ...,
        prefetch: int = ...,
    ) -> None: ...
    def next(self) -> Batch: ...
    def seek(self, step: int) -> None: ...
    @property
    def waited(self) -> float: ...

class Preprocess:
    def __init__(
        self,
        size: int = ...,
        fit: str = ...,
        box_margin: float = ...,
        mean: Sequence[float] = ...,
        std: Sequence[float] = ...,
    ) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def fit(self) -> str: ...
    @property
    def box_margin(self) -> float: ...
    @property
    def mean(self) -> list[float]: ...
    @property
    def std(self) -> list[float]: ...

def decode_file(path: str) -> NDArray[np.uint8]: ...
def image_source(
    images: int,
    *,
    seed: int = ...,
    batch: int = ...,
    shuffle: bool = ...,
    drop_last: bool = ...,
    rank: int = ...,
    world_size: int = ...,
) -> BatchSource: ...
def load_image(path: str, box: Sequence[SupportsInt] | None = ..., preprocess: Preprocess = ...) -> Batch: ...
def prepare_image(
    pixels: ArrayLike, box: Sequence[SupportsInt] | None = ..., preprocess: Preprocess = ...
) -> Batch: ...
def set_decode_fallback(decode: Callable[[str], ArrayLike] | None) -> None: ...
def triplet_source(
    labels: LabelTable,
    *,
    seed: int = ...,
    batch: int = ...,
    triplets: int = ...,
    negative_by_value: bool = ...,
    exclude_shared: bool = ...,
    rank: int = ...,
    world_size: int = ...,
) -> BatchSource: ...
class RpfConfig:
    """Configuration of RPF; see csrc/models/rpf.h."""

    attributes: int
    trunk: str
    patch_trunk: str
    attribute_dim: int
    embedding_dim: int
    hidden_dim: int
    heads: int
    dropout: float
    project_background: bool
    def __init__(self) -> None: ...

# Name, shape, initializer, scale, whether it is a buffer.
_Spec = tuple[str, tuple[int, ...], str, float, bool]

def rpf_spec(config: RpfConfig) -> list[_Spec]:
    """The tensors of RPF, in the order its operators take them."""

def trunk_spec(trunk: str) -> list[_Spec]:
    """The tensors of a trunk, in the order placket::trunk_features takes them."""

def trunk_channels(trunk: str) -> int:
    """Channels of a trunk's map."""

def trunk_normalization(trunk: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of RGB in [0, 1] that a trunk's weights were made with."""
