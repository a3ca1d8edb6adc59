"""Training: the loop runs in C++, Python gives the configuration and takes the reports."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from placket import _C, checkpoint, weights
from placket.config import (
    LossConfig,
    ModelConfig,
    StageConfig,
    TrainConfig,
    TrainerConfig,
    dump,
    load_config,
    to_dict,
)
from placket.data import Dataset, Split
from placket.data import open as open_data
from placket.data.loader import causes_by_path, skips_unreadable
from placket.data.resident import resident_pixels
from placket.extension import extend
from placket.models import METHODS, as_network, create_model, load, takes_patch
from placket.nn import AttributeNetwork, ExtraLoss, Learning, MmflNet, Model, RafClip
from placket.runs import RunFolder

__all__ = ["ExtraLoss", "TrainResult", "Trainer", "train"]


class Trainer:
    """Trains a model for one stage, in place: ``model``'s parameters are the ones that change.

    Example::

        trainer = placket.Trainer(model, data, StageConfig(epochs=2, batch=8, triplets=800))
        trainer.run()

    Every random choice is a function of seed, step and rank: equal seeds give equal bits on a CPU, and a
    trainer that continues from ``state()`` gives what the first would have given. An exception, also
    KeyboardInterrupt, leaves the model as it was between two steps, so that ``run()`` may simply be called
    again.

    Args:
        model: with trunks of this package; on the device to train on. A stage with one of the losses
            ``..._classify`` gives it centres of its classes (``AttributeNetwork.learn_classes``).
        data: the data set; its attributes are some of the model's, with the same values.
        stage, loss, trainer: see ``placket.config``.
        split: to learn from.
        regions: whether the rows are the split's regions, see ``Dataset.region_split``, or its images.
        evaluation: split whose lists are evaluated; None for never.
        folder: of the run, for checkpoints; None for none.
        stage_index, first_step: the stage's place in a training of several, and the steps before it.
        on_error: "raise" for an image of ``split`` that cannot be read, or "skip": another that carries the
            value it was drawn for takes its place; ``skipped`` lists it.
        resident: keep the pixels of the data set, a store of pixels, in the memory of the model's device and
            make batches there; see ``placket.data.Loader``. Changes no bit.
        on_report: called with a report every ``trainer.report_every`` steps; what it raises ends ``run()``
            unchanged.
        on_evaluation: the same after each evaluation.
        extra_losses: further losses by name, each with its weight in ``stage.losses``, such as those of
            pytorch-metric-learning. Called in each step with embeddings [V, E] float32, of unit length as
            evaluation compares them, and their classes [V] int64, which count the values of all attributes in
            order; V is every labelled attribute of the batch's images, with the patch branch the batch's
            labelled views. Returns a scalar; what it raises ends ``run()`` unchanged. It may have no
            parameters of its own.
        process_group: of ``torch.distributed``; each of its ranks takes its part of the batch, and gradients
            are averaged. Results equal those of one process where BatchNorm is "frozen" and dropout 0.

    Raises:
        ValueError: a setting is out of range, unknown, or does not fit the model or the data.
        DatasetError: the data set has an attribute that the model does not, or is no store of pixels to be
            resident.
    """

    def __init__(
        self,
        model: Model,
        data: Dataset,
        stage: StageConfig | None = None,
        *,
        loss: LossConfig | None = None,
        trainer: TrainerConfig | None = None,
        split: str = "train",
        regions: bool = False,
        evaluation: str | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        resident: bool = False,
        folder: Path | None = None,
        stage_index: int = 0,
        first_step: int = 0,
        on_report: Callable[[_C.Report], object] | None = None,
        on_evaluation: Callable[[_C.Evaluation], object] | None = None,
        extra_losses: Mapping[str, ExtraLoss] | None = None,
        process_group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        _check_extra_losses(extra_losses or {})
        self.model = model
        self.stage = stage or StageConfig()
        loss = loss or LossConfig()
        if learns_classes(self.stage) and isinstance(model, AttributeNetwork):
            model.learn_classes(1 / loss.classify_scale)
        self.first_step = first_step
        settings = trainer or TrainerConfig()
        first = len(model.schema) - self.stage.new_attributes if self.stage.new_attributes else 0
        self._images = images = _rows(data, split, regions).under(model.schema, first)
        held_out = None
        if evaluation is not None:
            held_out = _rows(data, evaluation, regions).under(model.schema, first)
        config = _C.TrainerConfig()
        config.stage = _native_stage(self.stage)
        config.stage_index = stage_index
        config.first_step = first_step
        config.preprocess = _C.Preprocess(**model.preprocess)
        config.views = model.views if images.masks is not None else "crop"
        config.evaluate_every = _evaluate_every(settings, self.stage, images) if evaluation is not None else 0
        config.run = "" if folder is None else str(folder)
        config.skip_unreadable = skips_unreadable("Trainer", on_error)
        config.model_config = json.dumps(model.config_dict(), indent=2) + "\n"
        for key in ("seed", "bfloat16", "loader_threads", "report_every", "checkpoint_every"):
            setattr(config, key, getattr(settings, key))
        pixels = resident_pixels(images, next(model.parameters()).device) if resident else None
        labels = images.with_products() if model.learns_products else images.labels
        products, domains = labels.values[-2:] if model.learns_products else (0, 1)
        self._native = _C.Trainer(
            model.system(Learning(loss, settings.seed, extra_losses or {}, products, domains)),
            images.image_list(pixels),
            labels.to_native(),
            None if held_out is None else _evaluation_set(held_out, model, pixels),
            config,
            report=on_report,
            evaluated=on_evaluation,
            process_group=process_group,
        )

    def step(self) -> dict[str, float]:
        """Take one step and return the losses, unweighted, by name."""
        return self._native.step()

    def run(self, steps: int | None = None) -> None:
        """Train to the end of the stage, or for at most ``steps`` more.

        Raises:
            RuntimeError: a loss is not finite (the text names step, loss and image files), or an image cannot
                be read.
            OSError, RuntimeError: a checkpoint cannot be written; the one before is whole.
        """
        self._native.run(steps)

    def evaluate(self) -> _C.Evaluation:
        """Evaluate the model as it is on the evaluation split."""
        return self._native.evaluate()

    def state(self) -> _C.Checkpoint:
        """Return a copy of all that resuming needs."""
        return self._native.state()

    def load_state(self, state: _C.Checkpoint) -> None:
        """Continue from a state of the same stage, also from ``_C.Checkpoint.load(folder)``.

        Raises:
            ValueError: it is of another stage, model or seed; nothing is changed then.
        """
        self._native.load_state(state)

    def save(self) -> None:
        """Write a checkpoint of the state as it is and point the run's ``last`` at it."""
        self._native.save()

    @property
    def done(self) -> bool:
        """Whether the stage is at its end and all that is due there is done."""
        return self._native.done

    @property
    def steps_done(self) -> int:
        """Steps of the stage that were taken."""
        return self._native.steps_done

    @property
    def steps(self) -> int:
        """Steps of the stage in all."""
        return self._native.steps

    @property
    def skipped(self) -> dict[str, str]:
        """The images that could not be read and were replaced so far: the cause by path."""
        return causes_by_path(self._images, self._native.skipped)

    @property
    def best(self) -> float | None:
        """The stage's best overall MAP so far, in per cent."""
        return None if self._native.best is None else 100 * self._native.best


@dataclass(frozen=True)
class TrainResult:
    """What a training left behind.

    Attributes:
        folder: of the run.
        steps: of all stages.
        best: overall MAP in per cent of each stage's best checkpoint on the evaluation split, by stage; None
            where nothing was evaluated.
    """

    folder: Path
    steps: int
    best: dict[str, float | None]

    def model(self, stage: str | None = None, device: str = "cpu") -> Model:
        """Read the best model of the last stage, or of a named one."""
        return load(self.folder / ("best" if stage is None else f"stages/{stage}"), device=device)


def train(
    config: TrainConfig,
    *,
    run: str | Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> TrainResult:
    """Train all stages of a configuration, each from the best checkpoint of the one before.

    A run that was stopped, by Ctrl-C or by a kill, continues with ``resume`` from its last checkpoint and
    gives what it would have given.

    Args:
        config: see ``placket.config.load_config``.
        run: folder of the run; None makes ``runs/<model>-<time>``.
        resume: continue the run in the folder; one without a checkpoint starts at its beginning.
        progress: show progress bars; None does so on a terminal.

    Raises:
        ValueError: the configuration does not fit, or is not the run's own.
        FileExistsError: the folder holds a run and ``resume`` is not asked for.
    """
    folder = RunFolder(run or Path("runs") / f"{config.model.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    start = None
    if resume:
        start = _resume(folder, config)
    else:
        _begin(folder, config)
    data = open_data(config.data.root)
    for text in data.split(config.data.train).warnings:
        warnings.warn(text, stacklevel=2)
    stage_index, first_step = 0, 0
    if start is not None:
        stage_index = int(start.metadata["stage_index"])
        first_step = int(start.metadata["first_step"])
    evaluation = None if config.trainer.evaluate_every == 0 else config.data.evaluation
    with _Log(folder, config, progress) as log:
        for index, stage in enumerate(config.stages[stage_index:], stage_index):
            model = stage_model(config, data, index, folder.path)
            trainer = Trainer(
                model,
                data,
                stage,
                loss=config.loss,
                trainer=config.trainer,
                split=config.data.train,
                regions=config.data.regions,
                evaluation=evaluation,
                on_error=config.data.on_error,
                resident=config.data.resident,
                folder=folder.path,
                stage_index=index,
                first_step=first_step,
                on_report=log.report,
                on_evaluation=log.evaluated,
            )
            if start is not None:
                trainer.load_state(start)
                start = None
            with log.stage(trainer):
                try:
                    trainer.run()
                except KeyboardInterrupt:
                    trainer.save()
                    raise
            first_step += trainer.steps
    best = {stage.name: _best(folder.path / "stages" / stage.name) for stage in config.stages}
    result = TrainResult(folder.path, first_step, best)
    folder.write_result({"steps": result.steps, "best": result.best})
    return result


def _check_extra_losses(extra_losses: Mapping[str, ExtraLoss]) -> None:
    """Refuse losses with parameters, which nothing would train."""
    for name, extra in extra_losses.items():
        if isinstance(extra, torch.nn.Module) and any(True for _ in extra.parameters()):
            raise ValueError(
                f"Trainer: extra_losses must have no parameters, got '{name}' with "
                f"'{next(extra.named_parameters())[0]}'; train it in a Python loop"
            )


def _native_stage(stage: StageConfig) -> _C.StageConfig:
    native = _C.StageConfig()
    augmentation = ("flip", "crop_scale", "color_jitter", "grayscale", "blur", "erasing", "random_crop")
    for key, value in dataclasses.asdict(stage).items():
        if key in ("losses", "ramp_epochs", "rates"):
            setattr(native, key, list(value.items()))
        elif key not in ("schedule", *augmentation):
            setattr(native, key, value)
    schedule = _C.Schedule()
    for key, value in dataclasses.asdict(stage.schedule).items():
        setattr(schedule, key, value)
    native.schedule = schedule
    native.augment = _C.Augment(
        flip=stage.flip,
        crop_scale=stage.crop_scale,
        color_jitter=_C.ColorJitter(**dataclasses.asdict(stage.color_jitter)),
        grayscale=stage.grayscale,
        blur=_C.GaussianBlur(**dataclasses.asdict(stage.blur)),
        erasing=_C.RandomErasing(**dataclasses.asdict(stage.erasing)),
        random_crop=_C.RandomCrop(**dataclasses.asdict(stage.random_crop)),
    )
    return native


def learns_classes(stage: StageConfig) -> bool:
    """Whether a stage has a loss that learns a centre of each class."""
    return any(name.endswith("_classify") for name in stage.losses)


def _rows(data: Dataset, split: str, regions: bool) -> Split:
    if not regions:
        return data.split(split)
    found = data.region_split(split)
    if found is None:
        raise ValueError(f"Trainer: data must have regions, got {data.root} without")
    return found


def _evaluate_every(trainer: TrainerConfig, stage: StageConfig, images: Split) -> int:
    if trainer.evaluate_every is not None:
        return trainer.evaluate_every
    epoch = stage.triplets if stage.sampler == "triplets" else len(images)
    return max(1, epoch // max(1, stage.batch))


def _evaluation_set(split: Split, model: Model, resident: _C.ResidentPixels | None) -> _C.EvaluationSet:
    if model.learns_products:
        asked, offered = _product_lists(split)
        return _C.EvaluationSet(split.image_list(resident), asked, offered, len(model.spaces))
    if not len(split.queries) or not len(split.candidates):
        raise ValueError(
            f"{split.root}: split '{split.name}' must have query and candidate lists to be evaluated, "
            "got none; set trainer.evaluate_every to 0 to train without"
        )
    queries, candidates = (
        (rows[:, 0].tolist(), rows[:, 1].tolist(), rows[:, 2].tolist())
        for rows in (split.queries, split.candidates)
    )
    return _C.EvaluationSet(split.image_list(resident), queries, candidates, len(split.schema))


def _product_lists(split: Split) -> list[tuple[list[int], list[int], list[int]]]:
    """Return images, space and products of those that ask for their product and of those that are asked.

    Of images in both lists, those of a set of one kind, the first of each product asks for the others.
    """
    asked, offered = split.query_images, split.gallery_images
    if split.identities is None or asked is None or offered is None or not len(asked):
        raise ValueError(
            f"{split.root}: split '{split.name}' must have lists of products' photos to be evaluated, got "
            "none; set trainer.evaluate_every to 0 to train without"
        )
    if np.isin(asked, offered).any():
        asked = asked[np.unique(split.identities[asked], return_index=True)[1]]
        offered = np.setdiff1d(offered, asked)
    return [(rows.tolist(), [0] * len(rows), split.identities[rows].tolist()) for rows in (asked, offered)]


def _begin(folder: RunFolder, config: TrainConfig) -> None:
    if folder.config.exists() or (folder.path / "last").exists():
        raise FileExistsError(
            f"train: run must be an unused folder, got {folder.path} with a run; resume it or name another"
        )
    folder.write_config(dump(config))


def _resume(folder: RunFolder, config: TrainConfig) -> _C.Checkpoint | None:
    """Return the run's last checkpoint, if it has one already."""
    if not folder.config.exists():
        raise FileNotFoundError(
            f"train: run must hold a run to resume, got {folder.path} without config.yaml"
        )
    saved = _flat(to_dict(load_config(folder.config)))
    for key, value in _flat(to_dict(config)).items():
        # What neither changes the result nor was fixed when the run began.
        if key.startswith("trainer.") and key not in (
            "trainer.seed",
            "trainer.bfloat16",
            "trainer.evaluate_every",
        ):
            continue
        if key == "data.resident":
            continue
        if saved.get(key) != value:
            raise ValueError(
                f"train: {key} must be the run's own, {saved.get(key)!r}, to resume it, got {value!r}"
            )
    if not (folder.path / "last").exists():
        folder.keep_metrics(0)
        return None
    state = _C.Checkpoint.load(str(folder.path / "last"))
    folder.keep_metrics(int(state.metadata["first_step"]) + int(state.metadata["step"]))
    return state


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(data, dict) and data:
        items = data.items()
    elif isinstance(data, list) and data:
        items = {str(i): item for i, item in enumerate(data)}.items()
    else:
        return {prefix: data}
    return {
        key: value
        for name, item in items
        for key, value in _flat(item, f"{prefix}.{name}" if prefix else name).items()
    }


def stage_model(config: TrainConfig, data: Dataset, index: int, run: Path) -> Model:
    """Make the model of a stage with the weights it begins with."""
    settings = config.model
    generator = torch.Generator().manual_seed(config.trainer.seed)
    if METHODS.get(settings.name) in (RafClip, MmflNet):
        return _whole_model(config, data, index, run, generator)
    if config.stages[index].new_attributes:
        return _extended_model(config, data, index, run, generator)
    with_patch = any("patch" in stage.branches for stage in config.stages[: index + 1])
    model = as_network(_make_model(config, data, generator, with_patch=with_patch), "config")
    start = settings.start if index == 0 else run / "stages" / config.stages[index - 1].name
    known = {} if start is None else checkpoint.read_tensors(start)
    if "region.centres" in known or any(map(learns_classes, config.stages[: index + 1])):
        model.learn_classes(1 / config.loss.classify_scale)
    if not known and settings.trunk_weights is not None:
        weights.load_trunk(model, settings.trunk_weights, branch="region")
    has_patch = any(name.startswith("patch.") for name in known)
    begins_patch = bool(model.config.patch_trunk) and not has_patch
    if begins_patch and settings.patch_weights not in (None, "region"):
        weights.load_trunk(model, settings.patch_weights, branch="patch")
    if known:
        state = model.state_dict()
        # What begins with this stage keeps its initial weights: a branch, or centres of classes.
        begun = {
            name: tensor
            for name, tensor in state.items()
            if name.startswith("patch.") or name.endswith(".centres")
        }
        taken = {
            name: tensor for name, tensor in known.items() if name in state or not name.startswith("patch.")
        }
        checkpoint.fill(model, begun | taken, str(start))
    if begins_patch and settings.patch_weights == "region":
        if settings.patch != settings.trunk:
            raise ValueError(
                f"config: model.patch must be model.trunk, '{settings.trunk}', with patch_weights 'region', "
                f"got '{settings.patch}'"
            )
        model.patch.trunk.load_state_dict(model.region.trunk.state_dict())
    return model.to(config.trainer.device)


def _whole_model(
    config: TrainConfig, data: Dataset, index: int, run: Path, generator: torch.Generator
) -> Model:
    """Make a model that is the same in every stage."""
    settings = config.model
    if METHODS[settings.name] is RafClip and settings.vocabulary is None:
        raise ValueError("config: model.vocabulary must be CLIP's vocabulary file for raf_clip, got none")
    model = _make_model(config, data, generator, with_patch=False)
    start = settings.start if index == 0 else run / "stages" / config.stages[index - 1].name
    if start is not None:
        checkpoint.fill(model, checkpoint.read_tensors(start), str(start))
    elif settings.trunk_weights is not None:
        if isinstance(model, RafClip):
            weights.load_towers(model, settings.trunk_weights)
        else:
            assert isinstance(model, MmflNet)
            weights.load_trunk(model.trunk, settings.trunk_weights)
    return model.to(config.trainer.device)


def _extended_model(
    config: TrainConfig, data: Dataset, index: int, run: Path, generator: torch.Generator
) -> Model:
    """Make the model of a stage that teaches a trained one further attributes of the data."""
    stage = config.stages[index]
    start = config.model.start if index == 0 else run / "stages" / config.stages[index - 1].name
    if start is None:
        raise ValueError(
            f"config: model.start must be a checkpoint for stage '{stage.name}' to extend, got none"
        )
    model = load(start)
    fresh = {a.name: a.values for a in data.schema.attributes if a.name not in model.schema.names}
    if fresh:
        if stage.new_attributes != len(fresh):
            raise ValueError(
                f"config: new_attributes of stage '{stage.name}' must be {len(fresh)}, as many as {start} "
                f"does not know ({', '.join(fresh)}), got {stage.new_attributes}"
            )
        model = extend(model, fresh, generator=generator)
    return model.to(config.trainer.device)


def _make_model(config: TrainConfig, data: Dataset, generator: torch.Generator, *, with_patch: bool) -> Model:
    settings: ModelConfig = config.model
    skip = ("name", "patch", "trunk_weights", "patch_weights", "start")
    options = {
        key: value
        for key, value in dataclasses.asdict(settings).items()
        if key not in skip and value is not None
    }
    if with_patch:
        options["patch"] = settings.patch
    elif takes_patch(settings.name):
        options["patch"] = None
    keys = ("size", "fit", "target_ratio", "interpolation", "arithmetic", "orientation", "box_margin")
    preprocess = {key: getattr(config.data, key) for key in keys}
    return create_model(
        settings.name,
        schema=data.schema,
        preprocess=preprocess,
        generator=generator,
        **options,
    )


def _best(folder: Path) -> float | None:
    best = _C.Checkpoint.load(str(folder)).metadata["best"]
    return 100 * float(best) if best else None


class _Log(AbstractContextManager["_Log"]):
    """Where reports go: ``metrics.jsonl``, TensorBoard, and a progress bar."""

    def __init__(self, folder: RunFolder, config: TrainConfig, progress: bool | None) -> None:
        self._folder = folder
        self._bar: tqdm[Any] | None = None
        self._first_step = 0
        self._stage = ""
        self._trainer: Trainer | None = None
        self._skipped: dict[str, str] = {}
        self._show = sys.stderr.isatty() if progress is None else progress
        self._writer = _tensorboard(folder.path) if config.trainer.tensorboard else None

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def stage(self, trainer: Trainer) -> AbstractContextManager[object]:
        """Return a progress bar for a stage, to be closed at its end."""
        self._trainer = trainer
        self._stage = trainer.stage.name
        self._first_step = trainer.first_step
        if not self._show:
            self._bar = None
            return nullcontext()
        self._bar = tqdm(total=trainer.steps, initial=trainer.steps_done, desc=self._stage, unit="step")
        return self._bar

    def report(self, report: _C.Report) -> None:
        record: dict[str, Any] = {"step": report.step, "epoch": report.epoch, "stage": self._stage}
        record |= {"loss": report.loss, "losses": report.losses, "rates": report.rates}
        record |= {"images_per_second": report.images_per_second, "data_wait": report.data_wait}
        self._folder.append_metrics(record)
        self._note_skipped()
        scalars = {"loss": report.loss, "images_per_second": report.images_per_second}
        scalars |= {f"losses/{name}": value for name, value in report.losses.items()}
        scalars |= {f"rates/{name}": value for name, value in report.rates.items()}
        self._scalars(scalars, report.step)
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {report.loss:.4f}, {report.images_per_second:.1f} images/s", refresh=False
            )
            self._bar.update(report.step - self._first_step - self._bar.n)

    def evaluated(self, evaluation: _C.Evaluation) -> None:
        assert self._trainer is not None
        names = self._trainer.model.default_spaces
        per_attribute = {
            name: 100 * value
            for name, value in zip(names, evaluation.per_attribute, strict=True)
            if value == value  # NaN: no queries
        }
        overall = 100 * evaluation.overall
        record: dict[str, Any] = {"step": evaluation.step, "epoch": evaluation.epoch, "stage": self._stage}
        record |= {"overall": overall, "per_attribute": per_attribute, "best": evaluation.best}
        self._folder.append_metrics(record)
        scalars = {f"map/{name}": value for name, value in per_attribute.items()}
        self._scalars({"map/overall": overall, **scalars}, evaluation.step)
        if self._bar is not None:
            self._bar.write(f"{self._stage}: step {evaluation.step}: MAP {overall:.2f}", file=sys.stderr)

    def _note_skipped(self) -> None:
        assert self._trainer is not None
        found = self._skipped | self._trainer.skipped
        if len(found) > len(self._skipped):
            warnings.warn(
                f"train: {len(found)} images cannot be read and others take their place, see "
                f"{self._folder.skipped}",
                stacklevel=2,
            )
            self._skipped = found
            self._folder.write_skipped(found)

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)


def _tensorboard(folder: Path) -> Any:
    """Return a writer of TensorBoard events, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
