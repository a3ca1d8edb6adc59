"""placket's C++ core; its operators are torch.ops.placket.*"""

from collections.abc import Callable, Iterable, Sequence
from typing import SupportsInt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, device
from torch.distributed import ProcessGroup
from typing_extensions import Buffer, Never

MAX_PIXELS: int

class _Type(type): ...  # pybind11's

_Spec = tuple[str, tuple[int, ...], str, float, bool, float]

class Augment(metaclass=_Type):
    def __init__(
        self,
        flip: float = ...,
        crop_scale: float = ...,
        color_jitter: ColorJitter | None = ...,
        grayscale: float = ...,
        blur: GaussianBlur | None = ...,
        erasing: RandomErasing | None = ...,
        random_crop: RandomCrop | None = ...,
    ) -> None: ...
    @property
    def flip(self) -> float: ...
    @property
    def crop_scale(self) -> float: ...
    @property
    def color_jitter(self) -> ColorJitter: ...
    @property
    def grayscale(self) -> float: ...
    @property
    def blur(self) -> GaussianBlur: ...
    @property
    def erasing(self) -> RandomErasing: ...
    @property
    def random_crop(self) -> RandomCrop: ...

class ColorJitter(metaclass=_Type):
    def __init__(
        self,
        brightness: float = ...,
        contrast: float = ...,
        saturation: float = ...,
        hue: float = ...,
        p: float = ...,
    ) -> None: ...
    @property
    def brightness(self) -> float: ...
    @property
    def contrast(self) -> float: ...
    @property
    def saturation(self) -> float: ...
    @property
    def hue(self) -> float: ...
    @property
    def p(self) -> float: ...

class GaussianBlur(metaclass=_Type):
    def __init__(self, kernel_size: int = ..., sigma: Sequence[float] = ..., p: float = ...) -> None: ...
    @property
    def kernel_size(self) -> int: ...
    @property
    def sigma(self) -> list[float]: ...
    @property
    def p(self) -> float: ...

class RandomCrop(metaclass=_Type):
    def __init__(self, padding: int) -> None: ...
    @property
    def padding(self) -> int: ...

class RandomErasing(metaclass=_Type):
    def __init__(
        self,
        p: float = ...,
        scale: Sequence[float] = ...,
        ratio: Sequence[float] = ...,
        value: float = ...,
    ) -> None: ...
    @property
    def p(self) -> float: ...
    @property
    def scale(self) -> list[float]: ...
    @property
    def ratio(self) -> list[float]: ...
    @property
    def value(self) -> float: ...

class Batch(metaclass=_Type):
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    @property
    def plan(self) -> BatchPlan: ...
    @property
    def images(self) -> Tensor: ...
    @property
    def segmented(self) -> Tensor: ...
    @property
    def attributes(self) -> Tensor: ...
    @property
    def values(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def classes(self) -> Tensor: ...
    @property
    def pixels(self) -> Tensor: ...
    @property
    def offsets(self) -> Tensor: ...
    @property
    def sizes(self) -> Tensor: ...

class BatchPlan(metaclass=_Type):
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
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

class BatchSource(metaclass=_Type):
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    def plan(self, step: int) -> BatchPlan: ...
    @property
    def steps_per_epoch(self) -> int: ...

class BpeTokenizer(metaclass=_Type):
    def __init__(self, merges: str) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_rows(self, texts: tuple[str, ...], length: int) -> Tensor: ...
    def decode(self, ids: Sequence[int]) -> bytes: ...

class Checkpoint(metaclass=_Type):
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    @staticmethod
    def load(folder: str) -> Checkpoint: ...
    @property
    def model(self) -> dict[str, Tensor]: ...
    @property
    def trainer(self) -> dict[str, Tensor]: ...
    @property
    def metadata(self) -> dict[str, str]: ...
    @property
    def config(self) -> str: ...

class Evaluation(metaclass=_Type):
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    @property
    def step(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def per_attribute(self) -> list[float]: ...
    @property
    def overall(self) -> float: ...
    @property
    def best(self) -> bool: ...

class EvaluationSet(metaclass=_Type):
    def __init__(
        self,
        images: ImageList,
        queries: tuple[Sequence[int], Sequence[int], Sequence[int]],
        candidates: tuple[Sequence[int], Sequence[int], Sequence[int]],
        attributes: int,
    ) -> None: ...

class ImageList(metaclass=_Type):
    def __init__(
        self,
        filenames: TextColumn,
        boxes: ArrayLike | None = ...,
        *,
        root: str,
        store: Store | None = ...,
        records: Sequence[int] = ...,
        resident: ResidentPixels | None = ...,
        masks: MaskColumn | None = ...,
    ) -> None: ...
    def __len__(self) -> int: ...
    def path(self, image: int) -> str: ...
    def decode(self, image: int, upright: bool = ...) -> NDArray[np.uint8]: ...

class LabelTable(metaclass=_Type):
    def __init__(
        self, begin: ArrayLike, attribute: ArrayLike, value: ArrayLike, values: Sequence[int]
    ) -> None: ...
    def __len__(self) -> int: ...

class Loader(metaclass=_Type):
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
        skip_unreadable: bool = ...,
        pin_memory: bool = ...,
        views: str = ...,
    ) -> None: ...
    def next(self) -> Batch: ...
    def seek(self, step: int) -> None: ...
    @property
    def waited(self) -> float: ...
    @property
    def skipped(self) -> dict[int, str]: ...

class MaskColumn(metaclass=_Type):
    def __init__(self, filenames: TextColumn, numbers: ArrayLike, bits: bool = ...) -> None: ...
    def __len__(self) -> int: ...

class Preprocess(metaclass=_Type):
    def __init__(
        self,
        size: int = ...,
        fit: str = ...,
        box_margin: float = ...,
        mean: Sequence[float] = ...,
        std: Sequence[float] = ...,
        interpolation: str = ...,
        orientation: str = ...,
        arithmetic: str = ...,
        target_ratio: float = ...,
    ) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def fit(self) -> str: ...
    @property
    def interpolation(self) -> str: ...
    @property
    def orientation(self) -> str: ...
    @property
    def arithmetic(self) -> str: ...
    @property
    def target_ratio(self) -> float: ...
    @property
    def box_margin(self) -> float: ...
    @property
    def mean(self) -> list[float]: ...
    @property
    def std(self) -> list[float]: ...

class Report(metaclass=_Type):
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    @property
    def step(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def losses(self) -> dict[str, float]: ...
    @property
    def loss(self) -> float: ...
    @property
    def rates(self) -> dict[str, float]: ...
    @property
    def images_per_second(self) -> float: ...
    @property
    def data_wait(self) -> float: ...

class ResidentPixels(metaclass=_Type):
    def __init__(self, store: Store, device: device) -> None: ...
    @property
    def pixels(self) -> Tensor: ...

class NetworkConfig(metaclass=_Type):
    """See csrc/models/network.h."""

    attributes: int
    trunk: str
    head: str
    patch_trunk: str
    patch_head: str
    classes: int
    learned_classes: int
    def __init__(self) -> None: ...

# Name, shape, initializer, scale, whether it is a buffer.

class AttributeOptions(metaclass=_Type):
    margin: float
    temperature: float
    alpha: float
    contrast_temperature: float
    classify_scale: float
    align_margin: float
    positive_weight: float
    centre_momentum: float
    centre_temperature: float
    pseudo_confidence: float
    region_weight: float
    box_threshold: float
    patch_size: int
    def __init__(self) -> None: ...

class ProductOptions(metaclass=_Type):
    margin: float
    soft_margin: bool
    label_smoothing: float
    centre_rate: float
    positive_weight: float
    def __init__(self) -> None: ...

class Schedule(metaclass=_Type):
    kind: str
    factor: float
    every: int
    milestones: list[int]
    warmup_steps: int
    warmup_epochs: int
    def __init__(self) -> None: ...

class StageConfig(metaclass=_Type):
    name: str
    branches: list[str]
    losses: list[tuple[str, float]]
    ramp_epochs: list[tuple[str, float]]
    rates: list[tuple[str, float]]
    schedule: Schedule
    weight_decay: float
    decoupled_decay: bool
    epochs: int
    batch_norm: str
    sampler: str
    batch: int
    triplets: int
    negative_by_value: bool
    exclude_shared: bool
    views_per_image: int
    new_attributes: int
    recompute: int
    images_of_class: int
    copies: int
    size: int | None
    augment: Augment
    def __init__(self) -> None: ...

class Store(metaclass=_Type):
    def __init__(self, path: str) -> None: ...
    def __len__(self) -> int: ...
    @property
    def kind(self) -> StoreKind: ...
    @property
    def metadata(self) -> bytes: ...
    @property
    def sizes(self) -> NDArray[np.int64]: ...
    def is_intact(self, i: int) -> bool: ...

class StoreKind(metaclass=_Type):
    def __init__(self, value: int) -> None: ...
    def __int__(self) -> int: ...
    def __index__(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...
    __members__: dict[str, StoreKind]
    FILES: StoreKind
    UPRIGHT_PIXELS: StoreKind
    STORED_PIXELS: StoreKind

class StoreWriter(metaclass=_Type):
    def __init__(self, path: str, kind: StoreKind, fingerprint: bytes) -> None: ...
    def __len__(self) -> int: ...
    @property
    def sizes(self) -> NDArray[np.int64]: ...
    def append_file(self, file: bytes) -> None: ...
    def append_pixels(self, pixels: ArrayLike, source_size: tuple[int, int]) -> None: ...
    def finish(self, metadata: bytes) -> None: ...

class System(metaclass=_Type):
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...
    def parameters(self) -> dict[str, Tensor]: ...
    def buffers(self) -> dict[str, Tensor]: ...
    def begin_encoding(self, branches: Sequence[str]) -> None: ...

class TextColumn(metaclass=_Type):
    def __init__(self, texts: Iterable[str]) -> None: ...
    @staticmethod
    def of(bytes: ArrayLike, ends: ArrayLike) -> TextColumn: ...
    @property
    def bytes(self) -> NDArray[np.uint8]: ...
    @property
    def ends(self) -> NDArray[np.uint32]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> str: ...
    def append(self, text: str) -> None: ...

class Trainer(metaclass=_Type):
    def __init__(
        self,
        system: System,
        images: ImageList,
        labels: LabelTable,
        evaluation: EvaluationSet | None,
        config: TrainerConfig,
        *,
        report: Callable[[Report], object] | None = ...,
        evaluated: Callable[[Evaluation], object] | None = ...,
        process_group: ProcessGroup | None = ...,
    ) -> None: ...
    def step(self) -> dict[str, float]: ...
    def run(self, steps: int | None = ...) -> None: ...
    def evaluate(self) -> Evaluation: ...
    def state(self) -> Checkpoint: ...
    def load_state(self, state: Checkpoint) -> None: ...
    def save(self) -> None: ...
    @property
    def steps_done(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def steps_per_epoch(self) -> int: ...
    @property
    def skipped(self) -> dict[int, str]: ...
    @property
    def done(self) -> bool: ...
    @property
    def best(self) -> float | None: ...

class TrainerConfig(metaclass=_Type):
    stage: StageConfig
    stage_index: int
    first_step: int
    seed: int
    bfloat16: bool
    preprocess: Preprocess
    loader_threads: int
    views: str
    skip_unreadable: bool
    report_every: int
    evaluate_every: int
    checkpoint_every: int
    poll_milliseconds: int
    run: str
    model_config: str
    def __init__(self) -> None: ...

def checksums(buffer: Buffer, block_bytes: int) -> NDArray[np.uint32]:
    """Return zlib's CRC-32 of each block of a contiguous buffer, the last one shorter, uint32."""

def class_source(
    labels: LabelTable,
    *,
    seed: int = ...,
    classes: int = ...,
    images_of_class: int = ...,
    steps: int = ...,
    attribute: int = ...,
    least_images: int = ...,
    balance: int = ...,
    rank: int = ...,
    world_size: int = ...,
) -> BatchSource: ...
def copied_source(source: BatchSource, copies: int) -> BatchSource: ...
def adjust_brightness(pixels: ArrayLike, amount: float) -> NDArray[np.uint8]: ...
def adjust_contrast(pixels: ArrayLike, amount: float) -> NDArray[np.uint8]: ...
def adjust_saturation(pixels: ArrayLike, amount: float) -> NDArray[np.uint8]: ...
def adjust_hue(pixels: ArrayLike, amount: float) -> NDArray[np.uint8]: ...
def decode_file(path: str, upright: bool = ..., part: Sequence[int] | None = ...) -> NDArray[np.uint8]: ...
def decode_mask(path: str, upright: bool = ...) -> NDArray[np.uint8]: ...
def read_file(path: str) -> bytes: ...
def shrink_file(path: str, size: int, upright: bool = ...) -> tuple[NDArray[np.uint8], tuple[int, int]]: ...
def encode_rows(
    system: System,
    images: ImageList,
    rows: Sequence[int],
    attributes: Sequence[int],
    *,
    preprocess: Preprocess,
    views: str = ...,
    batch: int = ...,
    threads: int = ...,
    bfloat16: bool = ...,
) -> Tensor: ...
def frame(
    height: SupportsInt,
    width: SupportsInt,
    box: Sequence[SupportsInt] | None = ...,
    preprocess: Preprocess = ...,
) -> tuple[list[int], list[float]]: ...
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
def prepare_image(
    pixels: ArrayLike,
    box: Sequence[SupportsInt] | None = ...,
    preprocess: Preprocess = ...,
    mask: ArrayLike | None = ...,
) -> Batch: ...
def rate_factor(schedule: Schedule, step: int, steps_per_epoch: int, steps: int) -> float: ...
def composition_spec(composition: str, dims: SupportsInt) -> list[_Spec]:
    """The tensors of a composition of D-dimensional features, in the order placket::compose takes them."""

def head_attends(head: str) -> bool: ...
def head_classes(head: str) -> list[int]:
    """Number of values of each attribute that a head's class sub-network knows; empty without one."""

def head_embedding_dim(head: str) -> int: ...
def network_spec(config: NetworkConfig) -> list[_Spec]:
    """The tensors of a network: the attribute table, then each branch's trunk and head."""

def attribute_system(
    config: NetworkConfig,
    options: AttributeOptions,
    tensors: dict[str, Tensor],
    values: Sequence[int],
    preprocess: Preprocess,
    seed: int = ...,
    extra_losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = ...,
) -> System: ...
def product_features(head: str) -> list[tuple[str, bool]]: ...
def product_head_levels(head: str) -> int: ...
def product_head_spec(head: str, trunk: str) -> list[_Spec]: ...
def product_system(
    trunk: str,
    head: str,
    products: int,
    domains: int,
    options: ProductOptions,
    tensors: dict[str, Tensor],
    values: Sequence[int],
    seed: int = ...,
) -> System: ...
def region_text_system(
    *,
    image: str,
    text: str,
    category: int,
    tensors: dict[str, Tensor],
    values: Sequence[int],
    prompts: Tensor,
    prompt_rows: Tensor,
) -> System: ...
def set_decode_fallback(decode: Callable[[bytes, bool], ArrayLike] | None) -> None: ...
def stage_seed(seed: int, stage_index: int) -> int: ...
def step_seed(seed: int, step: int, rank: int) -> int: ...
def triplet_source(
    labels: LabelTable,
    *,
    seed: int = ...,
    batch: int = ...,
    triplets: int = ...,
    negative_by_value: bool = ...,
    exclude_shared: bool = ...,
    single_views: bool = ...,
    rank: int = ...,
    world_size: int = ...,
) -> BatchSource: ...
def clip_spec(image: str, text: str) -> list[_Spec]:
    """The tensors of a CLIP: visual.* of the image tower, those of the text tower, logit_scale."""

def image_tower_embedding_dim(tower: str) -> int: ...
def image_tower_normalization(
    tower: str,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of RGB in [0, 1] that a tower's weights were made with."""

def image_tower_size(tower: str) -> int:
    """Side of the images that a tower was made for."""

def image_tower_spec(tower: str) -> list[_Spec]:
    """The tensors of an image tower, in the order placket::image_tower takes them."""

def text_tower_context(tower: str) -> int:
    """The most tokens a text may have."""

def text_tower_embedding_dim(tower: str) -> int: ...
def text_tower_spec(tower: str) -> list[_Spec]:
    """The tensors of a text tower, in the order placket::text_tower takes them."""

def text_tower_vocabulary(tower: str) -> int: ...
def trunk_channels(trunk: str) -> int:
    """Channels of a trunk's map."""

def trunk_normalization(trunk: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of RGB in [0, 1] that a trunk's weights were made with."""

def trunk_spec(trunk: str) -> list[_Spec]:
    """The tensors of a trunk, in the order placket::trunk_features takes them."""
