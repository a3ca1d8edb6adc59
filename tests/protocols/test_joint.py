from __future__ import annotations

import dataclasses

import numpy as np
import plain_rankings as plain
import pytest
import torch

from placket.nn import joint_embedding
from placket.protocols import (
    Blocks,
    asfr_joint,
    asfr_map_all,
    embed_from,
    joint_embed,
    split_joint,
    tune_region_weight,
)
from placket.schema import AttributeSchema

SCHEMA = AttributeSchema.of({"neckline": ["v", "round"], "hem": ["short", "long"]})


def blocks() -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Lists of 300 images, and two blocks: one knows the neckline, the other the hem."""
    random = np.random.default_rng(0)
    rows = np.stack([np.arange(300), random.integers(2, size=300), random.integers(2, size=300)], 1)
    value = torch.from_numpy(rows[:, 2] * 2.0 - 1)
    noise = torch.randn(2, 300, 2, 6)
    noise[0, :, 0, 0] += 2 * value
    noise[1, :, 1, 0] += 2 * value
    region, patch = torch.nn.functional.normalize(noise, dim=-1)
    return rows, region, patch


def test_every_weight_is_the_protocol_with_that_weight():
    rows, region, patch = blocks()
    embeds = embed_from(region), embed_from(patch)
    weights = [0.0, 0.3, 0.75, 1.0]
    found = tune_region_weight(Blocks(rows[:60], rows[60:], *embeds), SCHEMA, weights=weights)
    assert list(found.curve) == weights
    for weight in weights:
        result = asfr_map_all(rows[:60], rows[60:], joint_embed(*embeds, weight, SCHEMA), SCHEMA)
        # Two float32 sums of products against one: a pair of near scores may change places.
        assert found.curve[weight] == pytest.approx(result.overall, abs=0.05)
        for name, value in result.per_attribute.items():
            assert found.attribute_curves[name][weight] == pytest.approx(value, abs=0.05)
    assert found.overall == max(found.curve, key=found.curve.__getitem__)
    assert found.per_attribute["neckline"] > 0.5 > found.per_attribute["hem"]


def test_weights_of_attributes_are_used():
    rows, region, patch = blocks()
    embeds = embed_from(region), embed_from(patch)
    both = joint_embed(*embeds, {"neckline": 1.0, "hem": 0.0}, SCHEMA)
    result = asfr_map_all(rows[:60], rows[60:], both, SCHEMA)
    alone = [asfr_map_all(rows[:60], rows[60:], embed, SCHEMA) for embed in embeds]
    assert result.per_attribute["neckline"] == alone[0].per_attribute["neckline"]
    assert result.per_attribute["hem"] == alone[1].per_attribute["hem"]


def test_weights_are_chosen_on_valid_and_used_on_test():
    rows, region, patch = blocks()
    both = embed_from(region), embed_from(patch)
    valid, test = Blocks(rows[:60], rows[60:150], *both), Blocks(rows[150:200], rows[200:], *both)
    chosen = tune_region_weight(valid, SCHEMA)
    for per_attribute, weight in ((False, chosen.overall), (True, chosen.per_attribute)):
        result = asfr_joint(valid, test, SCHEMA, per_attribute=per_attribute, missing=1)
        joint = joint_embed(*both, weight, SCHEMA)
        expected = asfr_map_all(test.queries, test.candidates, joint, SCHEMA, missing=1)
        assert result == dataclasses.replace(expected, similarity=result.similarity)
    said = ", ".join(f"{w:g} for {name}" for name, w in chosen.per_attribute.items())
    assert result.similarity == f"cosine with region weight {said}, chosen on valid"
    # Of an attribute that nobody asks for on valid nothing can be chosen.
    some = valid._replace(queries=[row for row in rows[:60] if row[1] == 0])
    neckline = tune_region_weight(some, SCHEMA).per_attribute["neckline"]
    similarity = asfr_joint(some, test, SCHEMA, per_attribute=True).similarity
    assert f"{neckline:g} for neckline, {neckline:g} for hem" in similarity


def test_equal_weights_take_the_smallest():
    rows, _, _ = blocks()
    same = embed_from(plain.exact_rows(300, 2))
    valid = Blocks(rows[:60], rows[60:], same, same)
    found = tune_region_weight(valid, SCHEMA, weights=[0.5, 0.25])
    assert (found.overall, found.per_attribute) == (0.25, {"neckline": 0.25, "hem": 0.25})
    assert len(tune_region_weight(valid, SCHEMA).curve) == 21


def test_joint_embeddings_come_apart():
    _, region, patch = blocks()
    back = split_joint(joint_embedding(region, patch, 0.3))
    torch.testing.assert_close(back, (region, patch))
    for weight, name in ((1.0, "patch"), (0.0, "region")):
        with pytest.raises(ValueError, match=f"the {name} block must not be zero"):
            split_joint(joint_embedding(region, patch, weight))
    with pytest.raises(ValueError, match="embeddings must have an even width, got 3"):
        split_joint(torch.ones(2, 3))


@pytest.mark.parametrize("weights", [[], [0.5, 1.5], [[0.5]]])
def test_weight_errors(weights):
    rows, region, patch = blocks()
    valid = Blocks(rows, rows, embed_from(region), embed_from(patch))
    with pytest.raises(ValueError, match="tune_region_weight: weights must be numbers from 0 to 1, got"):
        tune_region_weight(valid, SCHEMA, weights=weights)
