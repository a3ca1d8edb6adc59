from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from placket.agreement import (
    WEIGHTS,
    Labelled,
    agreement_embed,
    class_agreement,
    class_means,
    tune_agreement,
)
from placket.nn.modc import assignment
from placket.protocols import asfr_map_all, embed_from
from placket.schema import AttributeSchema

SCHEMA = AttributeSchema.of({"neckline": ["v", "round", "boat"], "hem": ["short", "long"]})
COUNT = 600


def made() -> tuple[np.ndarray, Tensor]:
    """Rows (image, attribute, value), and embeddings of noise in which a direction tells the value."""
    random = np.random.default_rng(0)
    attribute = random.integers(2, size=COUNT)
    value = random.integers(np.array([3, 2])[attribute])
    z = torch.randn(COUNT, 2, 12, generator=torch.Generator().manual_seed(0))
    z[torch.arange(COUNT), torch.from_numpy(attribute), torch.from_numpy(value)] += 2
    return np.stack([np.arange(COUNT), attribute, value], 1), F.normalize(z, dim=-1)


def splits() -> tuple[Labelled, Labelled, list[Tensor]]:
    rows, z = made()
    embed = embed_from(z)
    valid, test = Labelled(rows[:60], rows[60:200], embed), Labelled(rows[200:300], rows[300:450], embed)
    return valid, test, class_means(rows[450:], embed, SCHEMA)


def probabilities(z: Tensor, centres: list[Tensor], temperature: float) -> Tensor:
    """``[N, A, 3]``, padded by 0."""
    parts = [assignment(z[:, a], own, temperature) for a, own in enumerate(centres)]
    return torch.stack([F.pad(part, (0, 3 - part.shape[1])) for part in parts], dim=1)


def test_assignment_by_hand() -> None:
    z = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    centres = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    e = torch.tensor(2.0).exp()
    expected = torch.stack([e / (e + 1), torch.tensor(0.0), 1 / (e + 1)])
    torch.testing.assert_close(assignment(z, centres, 0.5), torch.stack([expected, expected.flip(0)]))
    assert torch.equal(assignment(z, torch.zeros(3, 2), 0.5), torch.zeros(2, 3))


def test_class_means() -> None:
    z = torch.tensor([[[3.0, 4.0]], [[0.6, -0.8]], [[0.0, 5.0]]]).expand(3, 2, 2)
    labels = [(0, 0, 0), (1, 0, 0), (2, 0, 2), (2, 0, 0)]
    means = class_means(labels, embed_from(z), SCHEMA)
    expected = torch.tensor([[1.2, 1.0], [0.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(means[0], F.normalize(expected, dim=1))
    assert means[1].shape == (2, 0)  # no image has a label of it


def test_every_setting_is_the_protocol_with_that_setting() -> None:
    valid, _, centres = splits()
    _, z = made()
    temperatures, weights = (0.15, 0.5), (0.0, 0.5, 4.0)
    curve, alone = {}, {}
    for temperature in temperatures:
        p = embed_from(probabilities(z, centres, temperature))
        alone[temperature] = asfr_map_all(
            valid.queries, valid.candidates, p, SCHEMA, similarity="dot"
        ).overall
        for weight in weights:
            both = agreement_embed(valid.embed, p, weight)
            result = asfr_map_all(valid.queries, valid.candidates, both, SCHEMA, similarity="dot")
            curve[temperature, weight] = result.overall
    found = tune_agreement(valid, centres, SCHEMA, temperatures=temperatures, weights=weights)
    # Two float32 sums of products against one: a pair of near scores may change places.
    assert curve[found.temperature, found.weight] == pytest.approx(max(curve.values()), abs=0.05)
    assert alone[found.classes_temperature] == pytest.approx(max(alone.values()), abs=0.05)
    assert max(curve.values()) - min(curve.values()) > 1  # so that a wrong choice would show


def test_results_are_those_of_the_chosen_settings() -> None:
    valid, test, centres = splits()
    _, z = made()
    chosen = tune_agreement(valid, centres, SCHEMA)
    found = class_agreement(valid, test, centres, SCHEMA, missing=2)
    assert list(found) == ["embedding", "classes", "both"]
    lists = test.queries, test.candidates
    alone = embed_from(probabilities(z, centres, chosen.classes_temperature))
    both = agreement_embed(
        test.embed, embed_from(probabilities(z, centres, chosen.temperature)), chosen.weight
    )
    expected = {
        "embedding": asfr_map_all(*lists, test.embed, SCHEMA, missing=2),
        "classes": asfr_map_all(*lists, alone, SCHEMA, similarity="dot", missing=2),
        "both": asfr_map_all(*lists, both, SCHEMA, similarity="dot", missing=2),
    }
    for name, result in found.items():
        assert result == dataclasses.replace(expected[name], similarity=result.similarity)
    assert found["embedding"].similarity == "cosine"
    assert found["both"].similarity == (
        f"cosine + {chosen.weight:g} class agreement, chosen on valid, "
        f"temperature {chosen.temperature:g}, chosen on valid"
    )
    # The embeddings hold the value in one of 12 directions, which the centres know.
    assert found["classes"].overall > found["embedding"].overall + 10
    assert found["both"].overall >= found["embedding"].overall + 10


def test_scores_never_see_a_value_of_the_test() -> None:
    """Values of the test lists under other names give the same results: only their equality counts."""
    valid, test, centres = splits()
    names = np.array([[2, 0, 1], [1, 0, -1]])

    def renamed(rows: np.ndarray) -> np.ndarray:
        return np.stack([rows[:, 0], rows[:, 1], names[rows[:, 1], rows[:, 2]]], 1)

    found = class_agreement(valid, test, centres, SCHEMA)
    other = test._replace(queries=renamed(test.queries), candidates=renamed(test.candidates))
    for name, result in class_agreement(valid, other, centres, SCHEMA).items():
        assert result.metrics == found[name].metrics
        assert result.similarity == found[name].similarity


def test_classes_never_seen_and_attributes_without_centres() -> None:
    valid, test, centres = splits()
    centres[0][1] = 0
    partly = class_agreement(valid, test, centres, SCHEMA)
    assert partly["both"].overall > partly["embedding"].overall
    # Nothing is known of the hem: its agreement is 0 for all, and both rank as the embeddings do.
    found = class_agreement(valid, test, [centres[0], torch.zeros(2, 0)], SCHEMA)
    assert found["both"].per_attribute["hem"] == found["embedding"].per_attribute["hem"]
    assert found["classes"].metrics["E[MAP@all]"].per_group["hem"] == pytest.approx(
        found["classes"].floor["hem"]
    )


def test_given_probabilities() -> None:
    valid, test, centres = splits()
    _, z = made()
    p = embed_from(probabilities(z, centres, 0.1))
    valid, test = (split._replace(probabilities=p) for split in (valid, test))
    found = class_agreement(valid, test, None, SCHEMA)
    expected = asfr_map_all(test.queries, test.candidates, p, SCHEMA, similarity="dot")
    assert found["classes"] == dataclasses.replace(expected, similarity="class agreement")
    assert tune_agreement(valid, None, SCHEMA).temperature is None


def test_equal_settings_take_the_first() -> None:
    valid, _, _ = splits()
    nothing = [torch.zeros(3, 12), torch.zeros(2, 12)]
    found = tune_agreement(valid, nothing, SCHEMA)
    assert (found.weight, found.temperature) == (WEIGHTS[0], 0.02)


def test_agreement_errors() -> None:
    valid, test, centres = splits()
    with pytest.raises(ValueError, match="either centres or probabilities must be given, got neither"):
        class_agreement(valid, test, None, SCHEMA)
    given = valid._replace(probabilities=valid.embed)
    with pytest.raises(ValueError, match="either centres or probabilities must be given, got both"):
        class_agreement(given, test, centres, SCHEMA)
    with pytest.raises(ValueError, match="centres must be those of the 2 attributes, got 1"):
        class_agreement(valid, test, centres[:1], SCHEMA)
    with pytest.raises(ValueError, match=r"temperatures must be positive numbers, got \[0.1, 0\]"):
        class_agreement(valid, test, centres, SCHEMA, temperatures=[0.1, 0])
    with pytest.raises(ValueError, match=r"weights must be numbers from 0 on, got \[\]"):
        class_agreement(valid, test, centres, SCHEMA, weights=[])
