from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from placket.agreement import (
    WEIGHTS,
    Choice,
    Labelled,
    agreement_embed,
    centre_probabilities,
    class_agreement,
    class_means,
    tune_agreement,
)
from placket.nn.network import assignment
from placket.protocols import Result, asfr_map_all, embed_from
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
    means = class_means(rows[450:], embed, SCHEMA)
    estimates = centre_probabilities(embed, means)
    valid = Labelled(rows[:60], rows[60:200], embed, estimates)
    return valid, Labelled(rows[200:300], rows[300:450], embed, estimates, missing=2), means


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


def ranked_one_by_one(
    split: Labelled, weights: Sequence[float]
) -> tuple[dict[str, Result], dict[tuple[str, float], Result]]:
    """Every probabilities alone, and with every weight, by the protocol."""
    lists = split.queries, split.candidates
    alone = {
        name: asfr_map_all(*lists, p, SCHEMA, similarity="dot", missing=split.missing)
        for name, p in split.probabilities.items()
    }
    both = {
        (name, weight): asfr_map_all(
            *lists,
            agreement_embed(split.embed, p, weight),
            SCHEMA,
            similarity="dot",
            missing=split.missing,
        )
        for name, p in split.probabilities.items()
        for weight in weights
    }
    return alone, both


def with_noise(split: Labelled, seed: int) -> Labelled:
    """The split with a second estimate, which is better for "hem" and worse for "neckline"."""
    _, z = made()
    name = next(name for name in split.probabilities if name.endswith("0.1"))
    rows = np.concatenate([split.queries, split.candidates])
    noise = torch.rand(len(z), 2, 3, generator=torch.Generator().manual_seed(seed))
    noise[:, 1] *= 0.5
    for image, attribute, value in rows[rows[:, 1] == 1].tolist():
        noise[image, attribute, value] += 1
    return split._replace(probabilities={name: split.probabilities[name], "own": embed_from(noise)})


# Two float32 sums of products against one: a pair of near scores may change places.
NEAR = 0.05


def test_overall_choice_is_the_best_of_all_on_valid() -> None:
    valid, _, _ = splits()
    weights = (0.0, 0.5, 4.0)
    alone, both = ranked_one_by_one(valid, weights)
    chosen = tune_agreement(valid, SCHEMA, weights=weights)
    assert chosen == [chosen[0]] * 2
    first = chosen[0]
    overall = [result.overall for result in both.values()]
    assert both[first.joined, first.weight].overall == pytest.approx(max(overall), abs=NEAR)
    assert alone[first.alone].overall == pytest.approx(max(r.overall for r in alone.values()), abs=NEAR)
    assert max(overall) - min(overall) > 1  # so that a wrong choice would show


def test_choice_for_each_attribute_is_the_best_on_valid() -> None:
    valid, test, _ = splits()
    valid, test = with_noise(valid, 1), with_noise(test, 2)
    weights = (0.0, 0.5, 4.0)
    found = class_agreement(valid, test, SCHEMA, weights=weights, per_attribute=True)
    on_valid, on_test = (ranked_one_by_one(split, weights) for split in (valid, test))
    chosen = tune_agreement(valid, SCHEMA, weights=weights, per_attribute=True)
    for name, choice in zip(SCHEMA.names, chosen, strict=True):
        for ranking, key, tried, tested in (
            ("agreement", choice.alone, on_valid[0], on_test[0]),
            ("both", (choice.joined, choice.weight), on_valid[1], on_test[1]),
        ):
            best = max(result.per_attribute[name] for result in tried.values())
            assert tried[key].per_attribute[name] == pytest.approx(best, abs=NEAR)
            assert found[ranking].valid.per_attribute[name] == tried[key].per_attribute[name]
            assert found[ranking].test.per_attribute[name] == tested[key].per_attribute[name]
    assert [choice.alone for choice in chosen] == ["class means, temperature 0.1", "own"]
    weights = [f"{choice.weight:g} {choice.joined}" for choice in chosen]
    assert found["embedding"].chosen == {}
    assert found["agreement"].chosen == {"neckline": "class means, temperature 0.1", "hem": "own"}
    assert found["both"].chosen == dict(zip(SCHEMA.names, weights, strict=True))
    assert found["agreement"].test.similarity == (
        "class agreement (neckline: class means, temperature 0.1; hem: own), chosen on valid"
    )
    assert found["both"].test.similarity == (
        f"cosine + class agreement (neckline: {weights[0]}; hem: {weights[1]}), chosen on valid"
    )


def test_an_attribute_without_queries_has_the_choice_for_all() -> None:
    valid, _, _ = splits()
    rows = np.asarray(valid.queries)
    valid = valid._replace(queries=rows[rows[:, 1] == 0])
    assert tune_agreement(valid, SCHEMA, per_attribute=True) == tune_agreement(valid, SCHEMA)


def test_results_are_those_of_the_chosen_settings() -> None:
    valid, test, _ = splits()
    chosen = tune_agreement(valid, SCHEMA)[0]
    found = class_agreement(valid, test, SCHEMA)
    assert list(found) == ["embedding", "agreement", "both"]
    for split, which in ((valid, "valid"), (test, "test")):
        alone, both = ranked_one_by_one(split, [chosen.weight])
        lists = split.queries, split.candidates
        expected = {
            "embedding": asfr_map_all(*lists, split.embed, SCHEMA, missing=split.missing),
            "agreement": alone[chosen.alone],
            "both": both[chosen.joined, chosen.weight],
        }
        for name, ranked in found.items():
            result = getattr(ranked, which)
            assert result == dataclasses.replace(expected[name], similarity=result.similarity)
    results = {name: ranked.test for name, ranked in found.items()}
    assert results["embedding"].missing == 2
    assert results["embedding"].similarity == "cosine"
    assert results["agreement"].similarity == f"class agreement ({chosen.alone}), chosen on valid"
    assert results["both"].similarity == (
        f"cosine + class agreement ({chosen.weight:g} {chosen.joined}), chosen on valid"
    )
    given = class_agreement(valid, test, SCHEMA, weights=[0.7])["both"].test.similarity
    assert re.fullmatch(
        r"cosine \+ class agreement \(0\.7 class means, .*\), probabilities chosen on valid", given
    )
    # The embeddings hold the value in one of 12 directions, which the centres know.
    assert results["agreement"].overall > results["embedding"].overall + 10
    assert results["both"].overall >= results["embedding"].overall + 10


def test_weights_by_attribute() -> None:
    _, test, _ = splits()
    p = test.probabilities["class means, temperature 0.1"]
    images = np.arange(5)
    both = agreement_embed(test.embed, p, [0.5, 4.0])
    for attribute, weight in enumerate((0.5, 4.0)):
        z, q = torch.as_tensor(test.embed(images, attribute)), torch.as_tensor(p(images, attribute))
        rows = torch.as_tensor(both(images, attribute))
        torch.testing.assert_close(rows @ rows.T, z @ z.T + weight * q @ q.T)


@pytest.mark.parametrize("per_attribute", [False, True])
def test_scores_never_see_a_value_of_the_test(per_attribute: bool) -> None:
    """Values of the test lists under other names give the same results: only their equality counts."""
    valid, test, _ = splits()
    names = np.array([[2, 0, 1], [1, 0, -1]])

    def renamed(rows: np.ndarray) -> np.ndarray:
        return np.stack([rows[:, 0], rows[:, 1], names[rows[:, 1], rows[:, 2]]], 1)

    found = class_agreement(valid, test, SCHEMA, per_attribute=per_attribute)
    other = test._replace(queries=renamed(test.queries), candidates=renamed(test.candidates))
    for name, ranked in class_agreement(valid, other, SCHEMA, per_attribute=per_attribute).items():
        assert ranked.test.metrics == found[name].test.metrics
        assert ranked.test.similarity == found[name].test.similarity


def test_classes_never_seen_and_attributes_without_centres() -> None:
    valid, test, centres = splits()
    centres[0][1] = 0

    def ranked(centres: list[Tensor]) -> dict[str, Result]:
        estimates = centre_probabilities(valid.embed, centres)
        both = (split._replace(probabilities=estimates) for split in (valid, test))
        return {name: found.test for name, found in class_agreement(*both, SCHEMA).items()}

    partly = ranked(centres)
    assert partly["both"].overall > partly["embedding"].overall
    # Nothing is known of the hem: its agreement is 0 for all, and both rank as the embeddings do.
    found = ranked([centres[0], torch.zeros(2, 0)])
    assert found["both"].per_attribute["hem"] == found["embedding"].per_attribute["hem"]
    assert found["agreement"].metrics["E[MAP@all]"].per_group["hem"] == pytest.approx(
        found["agreement"].floor["hem"]
    )


def test_centre_probabilities() -> None:
    _, z = made()
    valid, _, centres = splits()
    found = centre_probabilities(valid.embed, centres, temperatures=(0.15, 0.5), name="own centres")
    assert list(found) == ["own centres, temperature 0.15", "own centres, temperature 0.5"]
    for p, temperature in zip(found.values(), (0.15, 0.5), strict=True):
        for attribute, own in enumerate(centres):
            expected = assignment(z[3:7, attribute], own, temperature)
            assert torch.equal(torch.as_tensor(p(np.arange(3, 7), attribute)), expected)


def test_equal_settings_take_the_first() -> None:
    valid, _, _ = splits()
    nothing = centre_probabilities(valid.embed, [torch.zeros(3, 12), torch.zeros(2, 12)])
    name = "class means, temperature 0.02"
    for per_attribute in (False, True):
        chosen = tune_agreement(valid._replace(probabilities=nothing), SCHEMA, per_attribute=per_attribute)
        assert chosen == [Choice(name, name, WEIGHTS[0])] * 2


def test_agreement_errors() -> None:
    valid, test, centres = splits()
    other = test._replace(probabilities={"own": test.embed})
    with pytest.raises(ValueError, match=r"must have the same names on valid and test, got .* and \['own'\]"):
        class_agreement(valid, other, SCHEMA)
    with pytest.raises(ValueError, match="probabilities must be at least one, got none"):
        tune_agreement(valid._replace(probabilities={}), SCHEMA)
    with pytest.raises(ValueError, match=r"weights must be numbers from 0 on, got \[\]"):
        class_agreement(valid, test, SCHEMA, weights=[])
    with pytest.raises(ValueError, match=r"weights must be numbers from 0 on, got \[-1.0\]"):
        class_agreement(valid, test, SCHEMA, weights=[-1.0])
    with pytest.raises(ValueError, match=r"temperatures must be positive numbers, got \[0.1, 0\]"):
        centre_probabilities(valid.embed, centres, temperatures=[0.1, 0])
    short = valid._replace(probabilities=centre_probabilities(valid.embed, centres[:1]))
    with pytest.raises(ValueError, match="centres must be those of every attribute, got 1"):
        tune_agreement(short, SCHEMA)
