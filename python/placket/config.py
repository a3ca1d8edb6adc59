"""The configuration of a training: dataclasses that Python users construct and YAML files that mean the same.

Reading is strict: a key that does not exist is an error that names the closest one that does.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

__all__ = [
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "ScheduleConfig",
    "StageConfig",
    "TrainConfig",
    "TrainerConfig",
    "dump",
    "find_config",
    "from_dict",
    "load_config",
    "to_dict",
]

RECIPES = Path(__file__).parent / "recipes"
VERSION_KEY = "placket_version"

T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    """What the model is made of; see the method's class, ``placket.models.METHODS[name]``.

    An option of None is left to the method; one that the method does not have is an error.

    Attributes:
        name: of the method: ``"asen"``, ``"asen_v2"``, ``"asen_plus_plus"``, ``"csn"``, ``"m3net"``,
            ``"mmfl"``, ``"modc"``, ``"raf_clip"``, ``"rpf"`` or ``"triplet"``.
        trunk: description of the region branch's trunk; of RaF-CLIP's image tower.
        patch: the same of the patch branch, from the first stage that trains it; None leaves it out.
        trunk_weights, patch_weights: what the trunks start from, as ``placket.weights.load_trunk`` takes it;
            None: random. ``patch_weights`` may be "region": the region branch's trunk as it then is. Of a
            RaF-CLIP with a tower of CLIP's, what both towers start from (``placket.weights.load_clip``).
        start: a checkpoint's folder to start the first stage from instead. Where that stage has
            ``new_attributes``, the model is the checkpoint's, and the other settings here mean nothing.
    """

    name: str = "rpf"
    trunk: str = "resnet50"
    patch: str | None = None
    trunk_weights: str | None = None
    patch_weights: str | None = None
    start: str | None = None
    attribute_dim: int | None = None
    embedding_dim: int | None = None
    hidden_dim: int | None = None
    attention_dim: int | None = None
    patch_attention_dim: int | None = None
    patch_hidden_dim: int | None = None
    head: str | None = None
    heads: int | None = None
    dropout: float | None = None
    variant: str | None = None
    class_dim: int | None = None
    class_query_dim: int | None = None
    class_output_dim: int | None = None
    project_background: bool | None = None
    project_per_attribute: bool | None = None
    patch_size: int | None = None
    box_threshold: float | None = None
    region_weight: float | None = None
    temperature: float | None = None
    text: str | None = None
    vocabulary: str | None = None
    prompts: str | None = None
    category: str | None = None
    views: str | None = None
    map_dim: int | None = None
    fusion_dim: int | None = None
    stripes: tuple[int, ...] | None = None
    local: bool | None = None
    drop: float | None = None
    attributes: bool | None = None


@dataclass(frozen=True)
class DataConfig:
    """What is read and how an image becomes an input; see ``placket.data.Preprocess``.

    Attributes:
        root: the data set's folder, or the YAML file of a table (``placket.data.TableLayout``).
        train: split to learn from.
        evaluation: split whose query and candidate lists choose the best checkpoint.
        size: side of the input in pixels.
        fit: "crop" (short side and centre crop), "pad" (the whole box on a square), "target_pad" (a box
            longer than ``target_ratio`` padded to that ratio, then as "crop"; CLIP4Cir's) or "squash" (the
            whole box, each side resized to ``size`` by itself, so that no part of the input is empty).
        target_ratio: long side over short side, of "target_pad".
        interpolation: Pillow's filter that resizes; "bilinear" as published.
        arithmetic: "pillow" for every bit of Pillow, as published; "float" is faster, within about one grey
            level (bicubic and lanczos: more beside corners of black or white). The patch branch's crops are
            Pillow's with either.
        orientation: "apply" turns pictures upright by their EXIF tag; "ignore", as published, takes the
            pixels as they are stored.
        box_margin: share of the box's sides added around it, where the set has boxes.
        on_error: "raise" for a training image that cannot be read, or "skip": another of its value takes its
            place, and ``skipped.json`` in the run folder lists it. Evaluation never skips.
        regions: learn from the set's regions (``Dataset.region_split``), and evaluate on them, rather than
            whole images.
        resident: keep the pixels of ``root``, a store of pixels, in the memory of the training's device and
            make batches there; see ``placket.data.Loader``. Changes no bit.
    """

    root: str = ""
    train: str = "train"
    evaluation: str = "valid"
    size: int = 224
    fit: Literal["crop", "pad", "target_pad", "squash"] = "crop"
    target_ratio: float = 1.25
    interpolation: Literal["bilinear", "bicubic", "box", "lanczos"] = "bilinear"
    arithmetic: Literal["pillow", "float"] = "pillow"
    orientation: Literal["apply", "ignore"] = "apply"
    box_margin: float = 0.0
    on_error: Literal["raise", "skip"] = "raise"
    regions: bool = False
    resident: bool = False


@dataclass(frozen=True)
class LossConfig:
    """Constants of the losses.

    Attributes:
        margin: of the triplet losses.
        temperature: of ``region_patch``.
        alpha: weight of the backgrounds in ``region_patch``.
        contrast_temperature: of ``region_contrast`` and ``patch_contrast``.
        classify_scale: of ``region_classify`` and ``patch_classify``.
        align_margin: of ``region_patch_align``.
        positive_weight: of the classes that an image carries, in ``class_recognition`` and ``attribute``.
        centre_momentum: share of a class centre that a step keeps: MODC's, and M3-Net's.
        centre_temperature: of ``region_prototype``, ``region_pseudo_label`` and ``region_consistency``.
        pseudo_confidence: probability above which ``region_pseudo_label`` takes an unlabelled image for one
            of the nearest centre's class.
        soft_margin: MMFL-Net's triplets have ``log(1 + e^x)`` in place of ``max(0, x + margin)``.
        label_smoothing: of ``identity``.
        centre_rate: at which ``centre`` moves the centres of a batch's products.
    """

    margin: float = 0.2
    temperature: float = 0.07
    alpha: float = 12.0
    contrast_temperature: float = 0.1
    classify_scale: float = 16.0
    align_margin: float = 1.0
    positive_weight: float = 10.0
    centre_momentum: float = 0.9
    centre_temperature: float = 0.1
    pseudo_confidence: float = 0.8
    soft_margin: bool = False
    label_smoothing: float = 0.1
    centre_rate: float = 0.5


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rates fall over a stage.

    Attributes:
        kind: "step": times ``factor`` every ``every`` epochs; "milestones": times ``factor`` after each of
            these epochs; "cosine": to 0 at the stage's end.
        warmup_steps, warmup_epochs: the rates rise linearly over this many first steps, or epochs.
    """

    kind: Literal["step", "milestones", "cosine"] = "step"
    factor: float = 0.9
    every: int = 3
    milestones: tuple[int, ...] = ()
    warmup_steps: int = 0
    warmup_epochs: int = 0


@dataclass(frozen=True)
class ColorJitterConfig:
    """Random colours; see ``placket.data.ColorJitter``."""

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    p: float = 1.0


@dataclass(frozen=True)
class BlurConfig:
    """Random blur; see ``placket.data.GaussianBlur``."""

    kernel_size: int = 9
    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 0.0


@dataclass(frozen=True)
class ErasingConfig:
    """Random erasing; see ``placket.data.RandomErasing``."""

    p: float = 0.0
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: float = 0.0


@dataclass(frozen=True)
class RandomCropConfig:
    """Random shifts; see ``placket.data.RandomCrop``."""

    padding: int = 0


@dataclass(frozen=True)
class StageConfig:
    """One stage of a training; the next one starts from its best checkpoint.

    Attributes:
        name: unique among the stages; ``stages/<name>`` of the run is its best checkpoint.
        branches: which learn, of "region" and "patch"; evaluation embeds with these and the region branch. Of
            RaF-CLIP "image" and "text", its towers. Of MMFL-Net "product", all of it.
        losses: weight of each loss by name: ``triplet_region``, ``triplet_patch``, ``region_patch``,
            ``region_patch_align``, ``region_contrast``, ``patch_contrast``, ``region_classify``,
            ``patch_classify``; M3-Net's ``class_recognition``, ``class_cross_entropy``,
            ``class_instance_triplet``, ``class_centre_triplet``; against MODC's class centres
            ``region_prototype``, ``region_centre_triplet``, ``region_pseudo_label``, ``region_consistency``
            (csrc/train/systems/attribute.h); RaF-CLIP's ``category_text``, ``attribute_text``,
            ``attribute_absent``, ``view_agreement`` (csrc/train/systems/region_text.h); MMFL-Net's
            ``identity``, ``triplet_hard``, ``triplet_cross_domain``, ``positive_distance``, ``centre``,
            ``attribute`` (csrc/train/systems/product.h); and those of ``Trainer``'s ``extra_losses``.
        ramp_epochs: of some of those, by name, the epochs in which the weight rises from 0, linearly.
        rates: learning rate by prefix of the parameters' names; the longest that fits counts, 0 freezes.
        weight_decay: of Adam's L2 term, or with ``decoupled_decay`` AdamW's.
        batch_norm: whose statistics BatchNorm takes in training: "grouped" each triplet role's apart (the
            reference), "merged" the whole batch's, "frozen" the running ones.
        sampler: "triplets", or "images": every image once an epoch; or "classes": ``images_of_class`` images
            of each of several values of one attribute, drawn for each step; or "products": as many of each of
            several products, half of them shops' photos and half consumers' where there are both.
        batch: triplets or images a step, over all processes.
        triplets: an epoch.
        images_of_class: with samplers "classes" and "products"; a divisor of ``batch``.
        copies: of every image of a batch, each with an augmentation of its own; 2 for ``region_consistency``.
        negative_by_value: draw a negative's value uniformly, then an image of it; otherwise uniformly among
            images.
        exclude_shared: draw no negative that carries the anchor's value too.
        views_per_image: without triplets, how many attributes of each image the patch branch looks at.
        new_attributes: other than 0, the last so many attributes alone learn, by what is theirs alone in the
            model, and all else stays as it is to the bit; see ``placket.extend``.
        recompute: images whose intermediate results are kept at a time, the others' being computed again in
            the backward pass, so that a large batch needs the memory of this many; 0 keeps all. Of RaF-CLIP,
            with ``batch_norm`` "frozen".
        size: side in pixels of the inputs to learn from; ``data.size`` by default. Smaller ones take less
            time, and as random crops show a garment larger than evaluation does, about 0.8 of ``data.size``
            also ranks better (Touvron et al., "Fixing the train-test resolution discrepancy", NeurIPS 2019).
        flip: probability of a horizontal flip.
        crop_scale: least share of the area that a random resized crop keeps; 1 switches it off.
        color_jitter, grayscale, blur, erasing, random_crop: further random changes, all off by default;
            ``grayscale`` is a probability.
    """

    name: str = "region"
    branches: tuple[str, ...] = ("region",)
    losses: dict[str, float] = field(default_factory=lambda: {"triplet_region": 1.0})
    ramp_epochs: dict[str, float] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=lambda: {"": 5e-5})
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    weight_decay: float = 0.0
    decoupled_decay: bool = False
    epochs: int = 50
    batch_norm: Literal["grouped", "merged", "frozen"] = "grouped"
    sampler: Literal["triplets", "images", "classes", "products"] = "triplets"
    batch: int = 16
    triplets: int = 100_000
    images_of_class: int = 4
    copies: int = 1
    negative_by_value: bool = True
    exclude_shared: bool = False
    views_per_image: int = 1
    new_attributes: int = 0
    recompute: int = 0
    size: int | None = None
    flip: float = 0.0
    crop_scale: float = 1.0
    color_jitter: ColorJitterConfig = field(default_factory=ColorJitterConfig)
    grayscale: float = 0.0
    blur: BlurConfig = field(default_factory=BlurConfig)
    erasing: ErasingConfig = field(default_factory=ErasingConfig)
    random_crop: RandomCropConfig = field(default_factory=RandomCropConfig)


@dataclass(frozen=True)
class TrainerConfig:
    """How a training runs; nothing here but ``seed`` and ``bfloat16`` changes what it gives on a CPU.

    Attributes:
        seed: of initial values, sampling, augmentation and dropout.
        device: "cpu" or "cuda".
        bfloat16: autocast.
        loader_threads: that decode images.
        report_every: steps between lines of ``metrics.jsonl``.
        evaluate_every: steps between evaluations; None: an epoch, 0: never.
        checkpoint_every: steps between checkpoints; 0: only with evaluations and at a stage's end.
        tensorboard: write TensorBoard events where it is installed.
    """

    seed: int = 1234
    device: str = "cpu"
    bfloat16: bool = False
    loader_threads: int = 2
    report_every: int = 20
    evaluate_every: int | None = None
    checkpoint_every: int = 500
    tensorboard: bool = True


@dataclass(frozen=True)
class TrainConfig:
    """A training: model, data, constants of the losses, the stages in order, and how it runs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names:
            raise ValueError("config: stages must be at least one, got none")
        for name in names:
            if names.count(name) > 1 or not name or "/" in name or "." in name:
                raise ValueError(
                    f"config: names of stages must differ, not be empty and hold no / or dot, got '{name}'"
                )


def find_config(path: str | os.PathLike[str]) -> Path:
    """Return where a configuration is: the file itself, or the shipped recipe of this name.

    Raises:
        FileNotFoundError: neither is there; the text lists the recipes.
    """
    file = Path(path)
    if file.is_file():
        return file
    recipe = RECIPES / (file.name if file.suffix else f"{file.name}.yaml")
    if file.parent == Path() and recipe.is_file():
        return recipe
    known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
    raise FileNotFoundError(f"config: '{path}' must be a file or a shipped recipe ({known}), got neither")


def load_config(path: str | os.PathLike[str]) -> TrainConfig:
    """Read a YAML file, or a shipped recipe by its name; what it leaves out has the default.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not YAML, a key does not exist, or a value is of another type.
    """
    file = find_config(path)
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(
            f"config: {file} must be YAML, got an error: {' '.join(str(error).split())}"
        ) from error
    try:
        return from_dict({} if data is None else data)
    except ValueError as error:
        raise ValueError(f"{error} (in {file})") from error


def from_dict(data: Mapping[str, Any]) -> TrainConfig:
    """Make the configuration that ``to_dict`` describes.

    Raises:
        ValueError: a key does not exist, or a value is of another type; the text names both.
    """
    if isinstance(data, Mapping):
        data = {key: value for key, value in data.items() if key != VERSION_KEY}
    return _build(TrainConfig, data, "")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration in YAML's types."""
    data: dict[str, Any] = _plain(dataclasses.asdict(config))
    return data


def dump(config: TrainConfig) -> str:
    """Return the whole configuration as YAML, with the version of the package."""
    from placket import __version__

    data = {VERSION_KEY: __version__, **to_dict(config)}
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _build(kind: type[T], data: Any, place: str) -> T:
    if not isinstance(data, Mapping):
        raise ValueError(f"config: {place or 'the file'} must be a mapping, got {data!r}")
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in data.items():
        name = f"{place}.{key}" if place else str(key)
        if key not in hints:
            closest = difflib.get_close_matches(str(key), hints, n=1, cutoff=0)[0]
            known = f"{place}.{closest}" if place else closest
            raise ValueError(f"config: {name} must be a key that exists, got '{key}'; closest is {known}")
        values[key] = _convert(hints[key], value, name)
    return kind(**values)


def _convert(kind: Any, value: Any, place: str) -> Any:
    """Return a value as a field of this type holds it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, place)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, place)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"config: {place} must be one of {', '.join(arguments)}, got {value!r}")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(arguments[0], item, f"{place}.{i}") for i, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return {str(key): _convert(arguments[1], item, f"{place}.{key}") for key, item in value.items()}
    if kind is float and not isinstance(value, bool):
        try:
            return float(value)  # also "5e-5", which YAML 1.1 takes for a string
        except (TypeError, ValueError):
            pass
    elif kind in (int, str, bool) and type(value) is kind:
        return value
    names = {tuple: "a list", dict: "a mapping", float: "a number", int: "an integer", str: "a string"}
    wanted = names.get(origin or kind, "true or false")
    raise ValueError(f"config: {place} must be {wanted}, got {value!r}")
