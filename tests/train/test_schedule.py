"""How the learning rates fall over a stage."""

from __future__ import annotations

import math

import pytest

from placket import _C


def schedule(**settings: object) -> _C.Schedule:
    made = _C.Schedule()
    for key, value in settings.items():
        setattr(made, key, value)
    return made


def factors(made: _C.Schedule, steps: int, steps_per_epoch: int = 2) -> list[float]:
    return [_C.rate_factor(made, step, steps_per_epoch, steps) for step in range(steps)]


def test_steps() -> None:
    found = factors(schedule(kind="step", factor=0.5, every=2), 10)
    assert found == [1.0] * 4 + [0.5] * 4 + [0.25] * 2


def test_milestones() -> None:
    found = factors(schedule(kind="milestones", factor=0.1, milestones=[1, 3]), 10)
    assert found == pytest.approx([1.0] * 2 + [0.1] * 4 + [0.01] * 4)


def test_cosine() -> None:
    found = factors(schedule(kind="cosine"), 8)
    assert found == pytest.approx([(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)])


@pytest.mark.parametrize("warmup", [{"warmup_steps": 4}, {"warmup_epochs": 2}])
def test_warm_up(warmup: dict[str, int]) -> None:
    found = factors(schedule(kind="milestones", factor=0.5, milestones=[1], **warmup), 6)
    assert found == pytest.approx([0.25, 0.5, 0.75 * 0.5, 1.0 * 0.5, 0.5, 0.5])


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule: warmup_steps must be 0 with warmup_epochs, got 3"):
        factors(schedule(warmup_steps=3, warmup_epochs=1), 1)
    with pytest.raises(ValueError, match="schedule: kind must be step, milestones or cosine, got linear"):
        factors(schedule(kind="linear"), 1)
    with pytest.raises(ValueError, match="schedule: every must be at least 1 epoch, got 0"):
        factors(schedule(every=0), 1)
