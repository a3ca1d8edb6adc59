from __future__ import annotations

from pathlib import Path

import numpy as np
import plain_rankings as plain
import pytest
import torch

from placket import AttributeSchema
from placket.data import Compositions, Split
from placket.data.dataset import Labels
from placket.data.lists import Queries
from placket.protocols import PROTOCOLS, Result, compare, composed_recall

IMAGES, QUERIES = 90, 40


def split_of(images: int) -> Split:
    nothing = np.zeros(0, np.int64)
    labels = Labels.gather(nothing, nothing, nothing, images, ())
    return Split("test", Path("."), AttributeSchema(()), images, (), labels)


@pytest.fixture
def compositions() -> Compositions:
    random, queries = np.random.default_rng(0), Queries()
    for _ in range(QUERIES):
        reference, target = random.choice(IMAGES, 2, replace=False).tolist()
        queries.add(reference, target, ["is longer", "in red"])
    return queries.compositions()


@pytest.mark.parametrize("absent", [0, 20])
@pytest.mark.parametrize("reference", ["kept", "removed"])
def test_matches_a_plain_loop(reference: str, absent: int, compositions: Compositions) -> None:
    images, asked = plain.exact_rows(IMAGES), plain.exact_rows(QUERIES)
    there = np.ones(IMAGES, bool)
    there[np.random.default_rng(1).permutation(IMAGES)[:absent]] = False
    result = composed_recall(
        compositions,
        split_of(IMAGES),
        asked,
        images,
        reference=reference,
        present=there if absent else None,
    )
    hits: dict[int, list[bool]] = {10: [], 50: []}
    for own, target, query in zip(compositions.reference, compositions.target, asked, strict=True):
        if not there[own] or not there[target]:
            continue
        gallery = [i for i in range(IMAGES) if there[i] and (reference == "kept" or i != own)]
        scores = (images[gallery] @ query).tolist()
        first = plain.rank_of_first(plain.ranked(scores, [i == target for i in gallery]))
        for k in hits:
            hits[k].append(first <= k)
        assert result.candidates == {"all": len(gallery)}
    for k, values in hits.items():
        assert result.metrics[f"Recall@{k}"].values["all"].tolist() == values
    assert result.overall == pytest.approx(100 * np.mean(hits[10]))
    assert result.queries == {"all": len(hits[10])}
    assert (result.missing, result.without_relevant) == (absent, 0)
    assert result.gallery == f"all images, reference {reference}"
    assert result.protocol == "composed-recall/v1" + (" subset" if absent else "")
    assert PROTOCOLS["composed-recall/v1"] is composed_recall


def test_results_compare_by_query_and_only_with_their_like(
    compositions: Compositions, tmp_path: Path
) -> None:
    split, images = split_of(IMAGES), torch.eye(IMAGES)
    targets = images[torch.from_numpy(compositions.target)]
    own = images[torch.from_numpy(compositions.reference)]
    perfect = composed_recall(compositions, split, targets, images, reference="kept")
    assert perfect.overall == 100
    perfect.save(tmp_path / "perfect.json")
    at_reference = composed_recall(compositions, split, own, images, reference="kept")
    difference = compare(at_reference, Result.load(tmp_path / "perfect.json")).metrics["Recall@10"]
    assert difference.interval[0] > 0
    removed = composed_recall(compositions, split, targets, images, reference="removed")
    assert removed.lists != perfect.lists
    with pytest.raises(ValueError, match="results must have the same gallery, got all images, reference"):
        compare(perfect, removed)


def test_removing_the_reference_moves_its_target_up(compositions: Compositions) -> None:
    """With the reference in front of it a target in place 11 is none of the first ten."""
    images = torch.eye(IMAGES)
    asked = torch.zeros(QUERIES, IMAGES)
    for query, own, target in zip(asked, compositions.reference, compositions.target, strict=True):
        others = [i for i in range(IMAGES) if i not in (own, target)][:9]
        query[own], query[others], query[target] = 1.0, 0.9, 0.5
    asked = torch.nn.functional.normalize(asked)
    figures = [
        composed_recall(compositions, split_of(IMAGES), asked, images, reference=choice).overall
        for choice in ("kept", "removed")
    ]
    assert figures == [0, 100]


def test_errors(compositions: Compositions) -> None:
    split = split_of(IMAGES)
    asked, images = torch.ones(QUERIES, 1), torch.ones(IMAGES, 1)
    with pytest.raises(ValueError, match="reference must be one of kept, removed, got 'without'"):
        composed_recall(compositions, split, asked, images, reference="without")
    with pytest.raises(ValueError, match=rf"composed_recall: images must be shape \[{IMAGES}, D\], got"):
        composed_recall(compositions, split, asked, images[1:], reference="kept")
    with pytest.raises(ValueError, match="queries must be L2-normalised rows, got norm 3 for image"):
        composed_recall(compositions, split, asked * 3, images, reference="kept")
    with pytest.raises(ValueError, match="present must leave a query, got none"):
        composed_recall(compositions, split, asked, images, reference="kept", present=np.zeros(IMAGES, bool))
    with pytest.raises(ValueError, match=r"composed_recall: present must have shape \[90\], got \[2\]"):
        composed_recall(compositions, split, asked, images, reference="kept", present=np.ones(2, bool))
    withheld = Queries()
    withheld.add(0, -1, ["in red"])
    with pytest.raises(ValueError, match="targets must be known, got 1 of 1 withheld; evaluate the split"):
        composed_recall(withheld.compositions(), split, asked[:1], images, reference="kept")
