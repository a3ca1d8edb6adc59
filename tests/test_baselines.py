"""The rows shown beside a model, on tensors small enough to check by hand or by another route."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from placket import AttributeSchema, baselines
from placket.protocols import asfr_map_all, embed_from


def test_pixels_averages_cells_and_ignores_a_colour_cast() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 200, (2, 3, 8, 8), dtype=torch.uint8)
    found = baselines.pixels(images, attributes=3, side=4)
    cells = images.double().reshape(2, 3, 4, 2, 4, 2).mean(dim=(3, 5))
    expected = F.normalize((cells - cells.mean(dim=(2, 3), keepdim=True)).flatten(1), dim=1).float()
    assert found.shape == (2, 3, 48)
    torch.testing.assert_close(found, expected[:, None].expand(-1, 3, -1))
    cast = images + torch.tensor([50, 20, 0], dtype=torch.uint8)[None, :, None, None]
    torch.testing.assert_close(baselines.pixels(cast, 3, side=4), found, rtol=0, atol=1e-5)


def test_pixels_of_one_colour_is_zero() -> None:
    assert not baselines.pixels(torch.full((1, 3, 32, 32), 7, dtype=torch.uint8), 1).any()


def test_pooled_is_the_normalised_mean() -> None:
    maps = torch.tensor([[[[1.0, 5.0]], [[4.0, 4.0]]]])
    torch.testing.assert_close(baselines.pooled(maps, 2), torch.tensor([[[0.6, 0.8], [0.6, 0.8]]]))


def ridge_problem(train: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(train + 20, 3, 4, 4, generator=generator)
    labels = torch.stack(
        [(maps[:, 0, :2, :2].mean(dim=(1, 2)) > 0).long(), torch.arange(train + 20) % 3], dim=1
    )
    labels[::7, 1] = -1
    return maps[:train], labels[:train], maps[train:], labels[train:]


def test_ridge_matches_least_squares_on_augmented_rows() -> None:
    train, labels, held, _ = ridge_problem()
    found = baselines.ridge(train, labels, held, held, lambda e: [0.0, 0.0], strengths=[2.5])
    assert found.strengths == [2.5, 2.5]
    assert found.embeddings.shape == (20, 2, 3)

    def features(maps: Tensor) -> np.ndarray:
        return maps.double().reshape(-1, 3, 2, 2, 2, 2).mean(dim=(3, 5)).flatten(1).numpy()

    for a in range(2):
        known = (labels[:, a] >= 0).numpy()
        x, y = features(train)[known], np.eye(3)[labels[known, a].numpy()]
        centre = x.mean(axis=0)
        stacked = np.vstack([x - centre, np.sqrt(2.5) * np.eye(12)])
        target = np.vstack([y - y.mean(axis=0), np.zeros((12, 3))])
        weight = np.linalg.lstsq(stacked, target, rcond=None)[0]
        expected = torch.from_numpy((features(held) - centre) @ weight + y.mean(axis=0)).float()
        torch.testing.assert_close(found.embeddings[:, a], expected, rtol=0, atol=1e-5)


def test_ridge_chooses_a_strength_for_each_attribute_by_score() -> None:
    train, labels, held, _ = ridge_problem()
    seen: list[Tensor] = []

    def score(embeddings: Tensor) -> list[float]:
        seen.append(embeddings)
        return [float(len(seen)), float(-len(seen))]  # attribute 0 prefers the last strength, 1 the first

    found = baselines.ridge(train, labels, held, held, score, strengths=[1.0, 10.0, 100.0])
    assert found.strengths == [100.0, 1.0]
    torch.testing.assert_close(found.embeddings[:, 0], seen[2][:, 0])
    torch.testing.assert_close(found.embeddings[:, 1], seen[0][:, 1])


def test_ridge_recovers_an_attribute_that_the_features_hold() -> None:
    train, labels, held, truth = ridge_problem(train=400)
    found = baselines.ridge(train, labels, held, held, lambda e: [0.0, 0.0], strengths=[0.1])
    assert (found.embeddings[:, 0, :2].argmax(dim=1) == truth[:, 0]).float().mean() >= 0.9


def test_ridge_scores_rank_better_by_dot_product_than_by_cosine() -> None:
    train, labels, held, truth = ridge_problem(train=400)
    scores = baselines.ridge(train, labels, held, held, lambda e: [0.0, 0.0], strengths=[300.0]).embeddings
    schema = AttributeSchema.of({"red": ["no", "yes"], "third": ["0", "1", "2"]})
    rows = np.stack([np.arange(20), np.zeros(20, int), truth[:, 0].numpy()], 1)
    dot = asfr_map_all(rows, rows, embed_from(scores), schema, similarity="dot")
    cosine = asfr_map_all(rows, rows, embed_from(F.normalize(scores, dim=2)), schema)
    assert dot.overall > cosine.overall


class Colours(nn.Module):
    """A trunk of one 1x1 convolution and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(images))
        return out


def colour_batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images whose attribute 0 is the sign of red and attribute 1 the strongest of three channels."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        colour = torch.randn(32, 3, generator=generator)
        images = colour[:, :, None, None] + 0.1 * torch.randn(32, 3, 4, 4, generator=generator)
        yield images, torch.stack([(colour[:, 0] > 0).long(), colour.argmax(dim=1)], dim=1)


def test_classifier_loss_skips_absent_labels() -> None:
    logits = [torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 4)]
    labels = torch.tensor([[0, -1], [-1, -1]])
    # attribute 0: one image, log(1 + e^-2); attribute 1: none
    expected = torch.tensor(np.log1p(np.exp(-2.0)) / 2, dtype=torch.float32)
    torch.testing.assert_close(baselines.classifier_loss(logits, labels), expected)


def test_classifier_learns_and_ranks_by_both_representations() -> None:
    torch.manual_seed(0)
    model = baselines.MultiHeadClassifier(Colours(), channels=8, values=[2, 3], dim=16)
    steps = baselines.train_classifier(
        model, itertools.islice(colour_batches(1), 300), minutes=5, trunk_lr=1e-2, head_lr=1e-2
    )
    assert steps == 300
    images, labels = next(colour_batches(2))
    found = baselines.embed_classifier(model, [images[:20], images[20:]])
    assert found.embeddings.shape == (32, 2, 16)
    assert found.probabilities.shape == (32, 2, 3)
    assert not found.probabilities[:, 0, 2].any()
    assert (found.probabilities.argmax(dim=2) == labels).float().mean() >= 0.9
    torch.testing.assert_close(found.embeddings.norm(dim=2), torch.ones(32, 2))
    torch.testing.assert_close(found.probabilities.sum(dim=2), torch.ones(32, 2))
    for representation in found:
        for a in range(2):
            similarity = representation[:, a] @ representation[:, a].T
            same = labels[:, a, None] == labels[None, :, a]
            assert similarity[same].mean() > similarity[~same].mean() + 0.2


def test_classifier_stops_when_its_time_is_spent() -> None:
    model = baselines.MultiHeadClassifier(Colours(), channels=8, values=[2, 3], dim=4)
    steps = baselines.train_classifier(model, colour_batches(1), minutes=0.3 / 60)  # the batches never end
    assert steps > 0
    assert not model.training


@pytest.mark.parametrize("freeze", [True, False])
def test_classifier_freezes_batch_norm_statistics(freeze: bool) -> None:
    model = baselines.MultiHeadClassifier(Colours(), channels=8, values=[2, 3], dim=4)
    before = model.trunk.get_buffer("norm.running_mean").clone()
    baselines.train_classifier(
        model, itertools.islice(colour_batches(1), 3), minutes=5, freeze_batch_norm=freeze
    )
    assert torch.equal(model.trunk.get_buffer("norm.running_mean"), before) == freeze


def test_flip_averaging_makes_a_mirrored_image_equal() -> None:
    class Left(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images[:, :, :, :2]

    torch.manual_seed(0)
    model = baselines.MultiHeadClassifier(Left(), channels=3, values=[2, 3], dim=8)
    images = torch.randn(4, 3, 4, 4)
    for plain, averaged, mirrored in zip(
        baselines.embed_classifier(model, [images]),
        baselines.embed_classifier(model, [images], flip=True),
        baselines.embed_classifier(model, [images.flip(3)], flip=True),
        strict=True,
    ):
        torch.testing.assert_close(averaged, mirrored)
        assert not torch.allclose(averaged, plain, atol=1e-3)


def test_a_loss_that_is_not_finite_is_an_error_with_its_step() -> None:
    model = baselines.MultiHeadClassifier(Colours(), channels=8, values=[2, 3], dim=4)
    batch = (torch.full((2, 3, 4, 4), torch.nan), torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(FloatingPointError, match="loss must be finite, got nan at step 0"):
        baselines.train_classifier(model, [batch], minutes=1)


def test_steps_end_training_and_frozen_parameters_stay() -> None:
    torch.manual_seed(0)
    model = baselines.MultiHeadClassifier(Colours(), channels=8, values=[2, 3], dim=16)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    taken = baselines.train_classifier(
        model, colour_batches(1), steps=7, trunk_lr=1e-2, head_lr=1e-2, frozen=["conv."]
    )
    assert taken == 7
    changed = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if not name.startswith("trunk.conv.")}


def test_the_rate_of_steps_falls_to_zero() -> None:
    """The second half of twice the steps moves the weights less than the first."""
    torch.manual_seed(0)
    model = baselines.MultiHeadClassifier(Colours(), channels=8, values=[2, 3], dim=16)
    seen: list[Tensor] = []

    def watched() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in colour_batches(1):
            seen.append(model.heads[0].weight.detach().clone())
            yield batch

    baselines.train_classifier(model, watched(), steps=40, head_lr=1e-2, weight_decay=0.0)
    moves = [(after - before).abs().max().item() for before, after in itertools.pairwise(seen)]
    assert len(moves) == 40
    assert max(moves[-3:]) < 0.1 * max(moves[:3])


def test_bad_arguments_name_the_argument_and_its_value() -> None:
    maps, labels = torch.zeros(4, 2, 2, 2), torch.zeros(4, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="images must be uint8"):
        baselines.pixels(torch.zeros(1, 3, 4, 4), 1)
    with pytest.raises(ValueError, match="attributes must be at least 1, got 0"):
        baselines.pooled(maps, 0)
    with pytest.raises(ValueError, match=r"strengths must be one or more positive numbers, got \[0.0\]"):
        baselines.ridge(maps, labels, maps, maps, lambda e: [0.0], strengths=[0.0])
    with pytest.raises(ValueError, match=r"train_labels must have shape \[4, A\], got \[3, 1\]"):
        baselines.ridge(maps, labels[:3], maps, maps, lambda e: [0.0])
    with pytest.raises(ValueError, match="must hold a value of attribute 0, got none"):
        baselines.ridge(maps, labels - 1, maps, maps, lambda e: [0.0])
    with pytest.raises(ValueError, match=r"one positive number for each attribute, got \[2, 0\]"):
        baselines.MultiHeadClassifier(Colours(), 8, [2, 0])
    with pytest.raises(ValueError, match="labels must have 1 columns, got 2"):
        baselines.classifier_loss([torch.zeros(1, 2)], torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="minutes or steps must be given, got 1 and 2"):
        baselines.train_classifier(baselines.MultiHeadClassifier(Colours(), 8, [2]), [], 1, steps=2)
    with pytest.raises(ValueError, match="minutes must be positive, got 0"):
        baselines.train_classifier(baselines.MultiHeadClassifier(Colours(), 8, [2]), [], minutes=0)
    with pytest.raises(ValueError, match="images must hold at least one batch, got none"):
        baselines.embed_classifier(baselines.MultiHeadClassifier(Colours(), 8, [2]), [])
