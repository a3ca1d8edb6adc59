from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

import clip_loss_ranks
from placket import losses, ops


def features(images: int, texts: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x, y = (F.normalize(torch.randn(n, 16), dim=1).to(dtype).requires_grad_() for n in (images, texts))
    return x, y


def test_clip_loss_is_cross_entropy_of_the_logits() -> None:
    x, y = features(20, 20, torch.float64)
    logits = 14 * x @ y.T
    expected = (F.cross_entropy(logits, torch.arange(20)) + F.cross_entropy(logits.T, torch.arange(20))) / 2
    scale = torch.tensor(14.0, dtype=torch.float64)
    torch.testing.assert_close(losses.ClipLoss()(x, y, scale), expected)
    one_way = losses.ClipLoss(symmetric=False)(x, y, scale)
    torch.testing.assert_close(one_way, F.cross_entropy(logits, torch.arange(20)))


def test_clip_loss_of_labels_is_cross_entropy_with_soft_targets() -> None:
    x, y = features(20, 12, torch.float64)
    labels, text_labels = torch.arange(20) % 4, torch.arange(12) % 4
    logits, same = 14 * x @ y.T, (labels[:, None] == text_labels).double()
    expected = (
        F.cross_entropy(logits, same / same.sum(1, keepdim=True))
        + F.cross_entropy(logits.T, same.T / same.T.sum(1, keepdim=True))
    ) / 2
    scale = torch.tensor(14.0, dtype=torch.float64)
    torch.testing.assert_close(losses.ClipLoss()(x, y, scale, labels, text_labels), expected)
    torch.testing.assert_close(losses.ClipLoss()(x, y, scale, relation=same.bool()), expected)
    sets, text_sets = F.one_hot(labels), F.one_hot(text_labels)
    torch.testing.assert_close(losses.ClipLoss()(x, y, scale, sets, text_sets), expected)


def test_siglip_loss_is_logsigmoid_of_signed_logits() -> None:
    x, y = features(20, 20, torch.float64)
    scale, bias = (torch.tensor(v, dtype=torch.float64) for v in (10.0, -10.0))
    sign = 2 * torch.eye(20, dtype=torch.float64) - 1
    expected = -F.logsigmoid(sign * (scale * x @ y.T + bias)).sum() / 20
    torch.testing.assert_close(losses.SigLipLoss()(x, y, scale, bias), expected)
    without = -F.logsigmoid(sign * (scale * x @ y.T)).sum() / 20
    torch.testing.assert_close(losses.SigLipLoss()(x, y, scale), without)


def test_siglip_loss_of_valid_negatives_alone() -> None:
    x, y = features(6, 8, torch.float64)
    none, valid = torch.zeros(6, 8, dtype=torch.bool), torch.rand(6, 8) < 0.5
    valid[2] = False
    scale = torch.tensor(10.0, dtype=torch.float64)
    expected = F.softplus(scale * (x @ y.T)[valid]).sum() / valid.any(1).sum()
    found = losses.SigLipLoss()(x, y, scale, relation=none, valid=valid)
    torch.testing.assert_close(found, expected)


def test_scales_are_numbers_or_tensors() -> None:
    x, y = features(5, 5)
    for scale in (7.0, torch.tensor(7.0), torch.tensor([7.0])):
        torch.testing.assert_close(losses.ClipLoss()(x, y, scale), ops.info_nce(x, y, torch.tensor(7.0)))
        found = losses.SigLipLoss()(x, y, scale, -scale)
        torch.testing.assert_close(found, ops.pairwise_sigmoid(x, y, torch.tensor(7.0), torch.tensor(-7.0)))


def test_a_learnt_scale_stays_below_its_bound_and_leaves_it_again() -> None:
    log_scale = torch.nn.Parameter(torch.tensor(math.log(90.0)))
    optimizer = torch.optim.SGD([log_scale], lr=1.0)
    for step in range(6):
        scale = losses.clamped_logit_scale(log_scale)
        assert 1 <= scale.item() <= 100.001
        optimizer.zero_grad()
        # A loss that asks for a larger scale, and from the third step on for a smaller one.
        (scale.log() * (-1 if step < 3 else 1)).backward()
        optimizer.step()
    assert losses.clamped_logit_scale(log_scale).item() == pytest.approx(100 * math.exp(-3), rel=1e-5)


def test_clip_loss_with_its_scale_compiles() -> None:
    log_scale = torch.nn.Parameter(torch.tensor(9.0))
    loss = losses.ClipLoss()

    def step(x: Tensor, y: Tensor) -> Tensor:
        return loss(x, y, losses.clamped_logit_scale(log_scale))

    x, y = features(9, 9)
    found = torch.compile(step, fullgraph=True)(x, y)
    assert log_scale.item() == pytest.approx(math.log(100))
    gradients = torch.autograd.grad(found, (x, y, log_scale))
    expected = step(x, y)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (x, y, log_scale)))


def test_two_ranks_equal_one_with_both_batches(tmp_path: Path) -> None:
    script = Path(clip_loss_ranks.__file__)
    processes = [
        subprocess.Popen([sys.executable, str(script), str(tmp_path), str(rank)]) for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    found = [safetensors.torch.load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    for name, loss in clip_loss_ranks.cases(gather=True).items():  # without a process group: one rank
        towers = clip_loss_ranks.Towers()
        value = loss(towers, *clip_loss_ranks.batch())
        value.backward()
        torch.testing.assert_close((found[0][f"{name} loss"] + found[1][f"{name} loss"]) / 2, value.detach())
        for key, parameter in towers.named_parameters():
            for rank in found:
                torch.testing.assert_close(rank[f"{name} {key}"], parameter.grad, msg=f"{name} {key}")
    for rank, results in enumerate(found):
        assert torch.equal(results["joined"], torch.tensor([[1.0], [1.0], [2.0], [2.0]]).expand(4, 3))
        assert torch.equal(results["asked"], torch.full((2, 3), 3.0)), rank


def test_gather_rows_of_one_process_are_its_own() -> None:
    rows = torch.randn(3, 2)
    assert losses.gather_rows(rows) is rows


def test_clip_loss_errors() -> None:
    x, y = features(4, 5)
    with pytest.raises(ValueError, match="ClipLoss: text_labels must come with labels, got them alone"):
        losses.ClipLoss()(x, y, 1.0, None, torch.arange(5))
    with pytest.raises(ValueError, match="SigLipLoss: either labels or relation must be given, got both"):
        losses.SigLipLoss()(x, y, 1.0, 0.0, torch.arange(4), relation=torch.ones(4, 5, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"ClipLoss: relation must be bool, got torch\.float32"):
        losses.ClipLoss()(x, y, 1.0, relation=torch.ones(4, 5))


def test_a_relation_is_refused_with_several_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_several_ranks", lambda group: True)
    x, y = features(4, 5)
    with pytest.raises(
        ValueError, match=r"ClipLoss: relation must be absent with several ranks, .* \[4, 5\]"
    ):
        losses.ClipLoss(gather=True)(x, y, 1.0, relation=torch.ones(4, 5, dtype=torch.bool))
