"""Whole runs: stages in order, the run folder, kills and full disks."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from small_training import STAGE, TRUNK, small_config

import placket
from placket import _C
from placket.config import TrainConfig, dump, load_config
from placket.data import AsenDataset
from placket.nn import Rpf
from placket.runs import RunFolder
from placket.train import Trainer

TRAIN = """
import sys, torch, placket
torch.set_num_threads(1)
config = placket.load_config(sys.argv[1])
placket.train(config, run=sys.argv[2], resume=sys.argv[3] == "resume", progress=False)
"""


@pytest.fixture(scope="module")
def finished(drawn: AsenDataset, tmp_path_factory: pytest.TempPathFactory) -> placket.TrainResult:
    torch.set_num_threads(1)
    config = small_config(drawn.root)
    return placket.train(config, run=tmp_path_factory.mktemp("runs") / "whole", progress=False)


def test_a_model_keeps_the_centres_of_classes_that_it_learns(drawn: AsenDataset, tmp_path: Path) -> None:
    config = small_config(drawn.root)
    region, patch = (
        dataclasses.replace(
            stage,
            sampler="images",
            batch_norm="merged",
            batch=8,
            epochs=2,
            losses={f"{branch}_classify": 1.0},
        )
        for branch, stage in zip(("region", "patch"), config.stages, strict=True)
    )
    run = placket.train(
        dataclasses.replace(config, stages=(region, patch)), run=tmp_path / "run", progress=False
    ).folder
    first, last = (placket.load(run / "stages" / name) for name in ("region", "patch"))
    assert isinstance(first, Rpf)
    assert isinstance(last, Rpf)
    assert first.region.centres is not None
    assert last.region.centres is not None
    assert torch.equal(last.region.centres, first.region.centres)  # no loss of the second stage's moves them
    weight = last.config.region_weight
    with torch.no_grad():
        own = torch.cat([last.learned_centres(name) for name in drawn.schema.names])
        region_part, patch_part = own.chunk(2, dim=1)
        torch.testing.assert_close(
            region_part, weight**0.5 * torch.nn.functional.normalize(first.region.centres, dim=1)
        )
        torch.testing.assert_close(own.norm(dim=1), torch.ones(len(own)))
        assert patch_part.any(1).all()
        z = placket.embed_split(last, drawn.split("valid"))
        for attribute, name in enumerate(drawn.schema.names):
            expected = (16 * z[:, attribute] @ last.learned_centres(name).T).softmax(1)
            torch.testing.assert_close(last.probabilities_of(z[:, attribute], name), expected)
    assert last.predicts
    assert not placket.create_model("rpf", schema=drawn.schema, trunk=TRUNK, patch=None).predicts


def without_clocks(run: Path) -> list[dict[str, object]]:
    clocks = ("images_per_second", "data_wait")
    return [{k: v for k, v in line.items() if k not in clocks} for line in RunFolder(run).read_metrics()]


def same_checkpoints(a: Path, b: Path) -> None:
    for name in ("last", "best", "stages/region", "stages/patch"):
        for file in ("model.safetensors", "trainer.safetensors", "config.json"):
            assert (a / name / file).read_bytes() == (b / name / file).read_bytes(), f"{name}/{file}"


def test_run_folder(finished: placket.TrainResult, drawn: AsenDataset) -> None:
    run = finished.folder
    assert load_config(run / "config.yaml") == small_config(drawn.root)
    assert finished.steps == 16
    result = json.loads((run / "result.json").read_text())
    assert result == {"steps": 16, "best": finished.best}
    lines = RunFolder(run).read_metrics()
    assert [line["step"] for line in lines if "loss" in line] == list(range(2, 17, 2))
    evaluations = [line for line in lines if "overall" in line]
    assert [(line["step"], line["stage"]) for line in evaluations] == [
        (4, "region"),
        (8, "region"),
        (12, "patch"),
        (16, "patch"),
    ]
    for stage in ("region", "patch"):
        assert finished.best[stage] == max(e["overall"] for e in evaluations if e["stage"] == stage)
    # Only what a link names is kept.
    linked = {(run / name).resolve().name for name in ("last", "best", "stages/region", "stages/patch")}
    assert {folder.name for folder in (run / "checkpoints").iterdir()} == linked


def test_checkpoints_are_models(finished: placket.TrainResult, drawn: AsenDataset) -> None:
    region, patch = finished.model("region"), finished.model()
    assert not region.config.patch_trunk
    assert patch.config.patch_trunk
    for stage, model in (("region", region), ("patch", patch)):
        result = placket.evaluate(model, drawn, "valid")
        assert result.overall == pytest.approx(finished.best[stage], abs=1e-9)
    saved = safetensors.torch.load_file(finished.folder / "best" / "model.safetensors")
    assert saved.keys() == patch.state_dict().keys()


def test_second_stage_begins_at_the_best_of_the_first(
    finished: placket.TrainResult, drawn: AsenDataset, tmp_path: Path
) -> None:
    config = small_config(drawn.root)
    # No learning at all: what comes out is what went in.
    rates = {"": 0.0, "patch.head.": 1e-9}
    still = dataclasses.replace(config.stages[1], rates=rates, batch_norm="frozen", epochs=1)
    again = placket.train(
        dataclasses.replace(config, stages=(config.stages[0], still)), run=tmp_path / "run", progress=False
    )
    before, after = finished.model("region").state_dict(), again.model().state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_equal_seeds_give_equal_bits(
    finished: placket.TrainResult, drawn: AsenDataset, tmp_path: Path
) -> None:
    config = small_config(drawn.root)
    threads = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, loader_threads=1))
    placket.train(threads, run=tmp_path / "run", progress=False)
    same_checkpoints(finished.folder, tmp_path / "run")


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(
    finished: placket.TrainResult, drawn: AsenDataset, tmp_path: Path
) -> None:
    run, file = tmp_path / "run", tmp_path / "config.yaml"
    file.write_text(dump(small_config(drawn.root)))
    # Killed once in each stage: as soon as so many lines are written, wherever the run is then.
    for lines, mode in ((4, "begin"), (10, "resume")):
        process = subprocess.Popen([sys.executable, "-c", TRAIN, str(file), str(run), mode])
        metrics = run / "metrics.jsonl"
        while process.poll() is None:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= lines:
                process.kill()
                break
            time.sleep(0.002)
        assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    placket.train(load_config(file), run=run, resume=True, progress=False)
    same_checkpoints(finished.folder, run)
    assert without_clocks(run) == without_clocks(finished.folder)


def test_interrupted_run_resumes(
    finished: placket.TrainResult, drawn: AsenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = tmp_path / "run", small_config(drawn.root)
    evaluated = _Interrupts(5)
    monkeypatch.setattr(RunFolder, "append_metrics", evaluated(RunFolder.append_metrics))
    with pytest.raises(KeyboardInterrupt):
        placket.train(config, run=run, progress=False)
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match=r"train: run must be an unused folder, got .*resume it"):
        placket.train(config, run=run, progress=False)
    other = dataclasses.replace(config, stages=(dataclasses.replace(STAGE, epochs=3), config.stages[1]))
    with pytest.raises(ValueError, match=r"train: stages\.0\.epochs must be the run's own, 2, .* got 3"):
        placket.train(other, run=run, resume=True, progress=False)
    placket.train(config, run=run, resume=True, progress=False)
    same_checkpoints(finished.folder, run)


class _Interrupts:
    """Lets a method raise KeyboardInterrupt at its n-th call."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, method: object) -> object:
        def call(*args: object) -> object:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return method(*args)  # type: ignore[operator]

        return call


def test_resident_pixels_change_no_bit(
    drawn: AsenDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both stages with their evaluations, also where a run goes on without them."""
    store = placket.data.pack(drawn, tmp_path / "drawn.store", size=40)
    config = small_config(store.place)
    resident = dataclasses.replace(config, data=dataclasses.replace(config.data, resident=True))
    expected = placket.train(config, run=tmp_path / "mapped", progress=False)
    found = placket.train(resident, run=tmp_path / "resident", progress=False)
    assert found.best == expected.best
    same_checkpoints(expected.folder, found.folder)
    monkeypatch.setattr(RunFolder, "append_metrics", _Interrupts(5)(RunFolder.append_metrics))
    with pytest.raises(KeyboardInterrupt):
        placket.train(resident, run=tmp_path / "resumed", progress=False)
    monkeypatch.undo()
    placket.train(config, run=tmp_path / "resumed", resume=True, progress=False)
    same_checkpoints(expected.folder, tmp_path / "resumed")


def test_resume_without_a_run(drawn: AsenDataset, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train: run must hold a run to resume, got .*config\.yaml"):
        placket.train(small_config(drawn.root), run=tmp_path / "no", resume=True)


FULL = """
import resource, sys
from pathlib import Path
import torch, placket
from placket.config import TrainerConfig
from placket.train import Trainer
from small_training import STAGE, TRUNK
torch.set_num_threads(1)
data = placket.data.open(sys.argv[1])
model = placket.create_model(
    "rpf", schema=data.schema, trunk=TRUNK, patch=None, attribute_dim=16, preprocess={"size": 48}
)
trainer = Trainer(model, data, STAGE, trainer=TrainerConfig(checkpoint_every=0), folder=Path(sys.argv[2]))
trainer.run(1)
trainer.save()
trainer.run(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
try:
    trainer.save()
except RuntimeError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
trainer.run(1)
"""


def test_a_full_disk_leaves_the_checkpoint_before(drawn: AsenDataset, tmp_path: Path) -> None:
    root = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(drawn.root), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert "model.safetensors" in done.stdout
    assert "cannot be written: File too large" in done.stdout
    state = _C.Checkpoint.load(str(tmp_path / "last"))
    assert state.metadata["step"] == "1"
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


def test_a_damaged_checkpoint_is_refused(finished: placket.TrainResult, tmp_path: Path) -> None:
    for file in ("model.safetensors", "trainer.safetensors"):
        folder = tmp_path / file
        folder.mkdir()
        for source in (finished.folder / "last").iterdir():
            (folder / source.name).write_bytes(source.read_bytes())
        whole = (folder / file).read_bytes()
        for cut in (0, 5, 100, len(whole) - 1):
            (folder / file).write_bytes(whole[:cut])
            with pytest.raises(RuntimeError, match=f"{file}: "):
                _C.Checkpoint.load(str(folder))
        (folder / file).write_bytes(whole + b"x")
        with pytest.raises(RuntimeError, match="cut off or damaged"):
            _C.Checkpoint.load(str(folder))
    with pytest.raises(RuntimeError, match="no checkpoint folder"):
        _C.Checkpoint.load(str(tmp_path / "none"))


def test_state_reads_as_safetensors(finished: placket.TrainResult) -> None:
    state = _C.Checkpoint.load(str(finished.folder / "last"))
    for tensors, file in ((state.model, "model.safetensors"), (state.trainer, "trainer.safetensors")):
        other = safetensors.torch.load_file(finished.folder / "last" / file)
        assert tensors.keys() == other.keys()
        assert all(torch.equal(tensors[name], other[name]) for name in other)


def test_evaluation_split_without_lists(drawn: AsenDataset, tmp_path: Path) -> None:
    config = small_config(drawn.root)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, evaluation="test"))
    with pytest.raises(ValueError, match="split must be one of train, valid, got 'test'"):
        placket.train(config, run=tmp_path / "a", progress=False)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, evaluation="train"))
    (drawn.root / "query_train.txt").rename(drawn.root / "hidden")
    try:
        data = placket.data.open(drawn.root)
        assert not len(data.split("train").queries)
        with pytest.raises(ValueError, match="must have query and candidate lists to be evaluated, got none"):
            placket.train(config, run=tmp_path / "b", progress=False)
    finally:
        (drawn.root / "hidden").rename(drawn.root / "query_train.txt")


def test_trains_without_evaluation(drawn: AsenDataset, tmp_path: Path) -> None:
    config: TrainConfig = small_config(drawn.root)
    settings = dataclasses.replace(config.trainer, evaluate_every=0)
    short = dataclasses.replace(config, stages=config.stages[:1], trainer=settings)
    result = placket.train(short, run=tmp_path / "run", progress=False)
    assert result.best == {"region": None}
    assert (tmp_path / "run" / "best").resolve() == (tmp_path / "run" / "last").resolve()


def test_two_processes_equal_one(drawn: AsenDataset, tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_processes.py")
    root = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(drawn.root), str(tmp_path), str(rank)], env=environment
        )
        for rank in range(2)
    ]
    from two_processes import STAGES, data_for, make

    expected = {}
    for name, stage in STAGES.items():
        model = make(drawn, name)
        Trainer(model, data_for(drawn, name), stage).run(3)
        expected[name] = model.state_dict()
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for name, tensors in expected.items():
        found = [safetensors.torch.load_file(tmp_path / f"{name}{rank}.safetensors") for rank in range(2)]
        for key, tensor in tensors.items():
            assert torch.equal(found[0][key], found[1][key]), key
            # Softmax is the same for all keys shifted alike, so this gradient is rounding alone, which Adam
            # turns into whole steps.
            if key == "patch.head.attn.k.bias":
                continue
            other = found[0][key]
            if key.endswith("attn.in_proj_bias"):  # of queries, keys and values
                (query, _, value), (other_query, _, other_value) = tensor.chunk(3), other.chunk(3)
                tensor, other = torch.cat([query, value]), torch.cat([other_query, other_value])
            # Sums over two halves are added in another order, which Adam's division may enlarge, here to a
            # tenth of one of its steps of 1e-3.
            torch.testing.assert_close(other, tensor, rtol=1e-4, atol=1e-4, msg=f"{name} {key}")
