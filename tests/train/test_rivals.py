"""The comparison with rivals on drawn images."""

from __future__ import annotations

from collections.abc import Callable

from placket import rivals
from placket.data import AsenDataset
from placket.nn import Rpf


def test_probabilities_are_ranked_by_dot_product_and_the_rest_by_cosine(
    drawn: AsenDataset, make_model: Callable[..., Rpf]
) -> None:
    told: list[str] = []
    found = dict(
        rivals.compare(
            make_model(),
            drawn,
            "valid",
            trunk_weights=None,
            minutes=0.5 / 60,
            feature_size=32,
            batch=8,
            say=told.append,
        )
    )
    assert {name: result.similarity for name, result in found.items()} == {
        "16 x 16 pixels": "cosine",
        "pooled frozen features": "cosine",
        "ridge, 2 x 2 frozen map": "dot",
        "classifier, ranked by embedding": "cosine",
        "classifier, ranked by probabilities": "dot",
        "classifier, ranked by probabilities, with mirror image": "dot",
    }
    assert len({result.lists for result in found.values()}) == 1
    assert len(told) == 4
    # The strength is chosen on this very split, and colour is a linear function of a random map.
    ridge = found["ridge, 2 x 2 frozen map"]
    assert ridge.overall > ridge.floor_overall + 10
