from __future__ import annotations

import json

import numpy as np
import plain_rankings as plain
import pytest
import torch

import placket
from placket.protocols import fashioniq_original, fashioniq_val

CATEGORIES = ("dress", "shirt", "toptee")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> placket.data.Dataset:
    """FashionIQ's lists in small, without photos: 70 images a category, 24 to 26 queries."""
    root = tmp_path_factory.mktemp("fashioniq")
    random = np.random.default_rng(0)
    for folder in ("image_splits", "captions"):
        (root / folder).mkdir()
    for c, category in enumerate(CATEGORIES):
        names = [f"{category}{i:03}" for i in range(70)] + (["both"] if c else [])
        pairs = [random.choice(names, 2, replace=False).tolist() for _ in range(24 + c)]
        for split in ("val", "test"):
            listed = names if split == "val" else [f"t{name}" for name in names]
            queries = [
                {"candidate": a, "captions": ["is longer"]} | ({"target": b} if split == "val" else {})
                for a, b in pairs
            ]
            if split == "test":
                queries = [{**query, "candidate": "t" + query["candidate"]} for query in queries]
            (root / "image_splits" / f"split.{category}.{split}.json").write_text(json.dumps(listed))
            (root / "captions" / f"cap.{category}.{split}.json").write_text(json.dumps(queries))
    return placket.data.open(root)


@pytest.mark.parametrize("absent", [0, 20])
@pytest.mark.parametrize("protocol", [fashioniq_original, fashioniq_val])
def test_matches_a_plain_loop(protocol, absent: int, data: placket.data.Dataset):
    split, queries = data.split("valid"), data.compositions("valid")
    images, asked = plain.exact_rows(len(split)), plain.exact_rows(len(queries))
    there = np.ones(len(split), bool)
    there[np.random.default_rng(1).permutation(len(split))[:absent]] = False
    result = protocol(queries, split, asked, images, present=there if absent else None)
    listed = set()
    for c, category in enumerate(CATEGORIES):
        rows = np.flatnonzero(queries.category == c).tolist()
        ends = {i for q in rows for i in (int(queries.reference[q]), int(queries.target[q]))}
        gallery = [i for i in range(len(split)) if (0, c) in split.labels[i]]
        if protocol is fashioniq_val:
            gallery = [i for i in gallery if i in ends]
        listed |= {*gallery, *ends}
        gallery = [i for i in gallery if there[i]]
        hits = {10: [], 50: []}
        for q in rows:
            if not there[queries.reference[q]] or not there[queries.target[q]]:
                continue
            scores = (images[gallery] @ asked[q]).tolist()
            first = plain.rank_of_first(plain.ranked(scores, [i == queries.target[q] for i in gallery]))
            for k in hits:
                hits[k].append(first <= k)
        for k, values in hits.items():
            assert result.metrics[f"Recall@{k}"].values[category].tolist() == values
        assert (result.queries[category], result.candidates[category]) == (len(hits[10]), len(gallery))
    means = [np.mean(x) for x in result.metrics["Recall@10"].values.values()]
    assert result.overall == pytest.approx(100 * np.mean(means))  # of the categories, not of the queries
    assert result.missing == sum(not there[i] for i in listed)
    assert result.protocol.endswith("/v1 subset" if absent else "/v1")
    assert (result.group, result.without_relevant) == ("category", 0)


def test_galleries_differ(data: placket.data.Dataset):
    split, queries = data.split("valid"), data.compositions("valid")
    rows = torch.ones(len(queries), 1), torch.ones(len(split), 1)
    original, val = (protocol(queries, split, *rows) for protocol in (fashioniq_original, fashioniq_val))
    assert list(original.candidates.values()) == [70, 71, 71]
    assert all(val.candidates[c] < original.candidates[c] for c in CATEGORIES)
    assert original.lists != val.lists


def test_errors(data: placket.data.Dataset):
    split, queries = data.split("valid"), data.compositions("valid")
    asked, images = torch.ones(len(queries), 1), torch.ones(len(split), 1)
    with pytest.raises(ValueError, match=rf"fashioniq_val: images must be shape \[{len(split)}, D\], got"):
        fashioniq_val(queries, split, asked, images[1:])
    with pytest.raises(ValueError, match="queries must be L2-normalised rows, got norm 3 for image"):
        fashioniq_val(queries, split, asked * 3, images)
    with pytest.raises(ValueError, match="present must leave a query, got none"):
        fashioniq_original(queries, split, asked, images, present=np.zeros(len(split), bool))
    with pytest.raises(ValueError, match=r"present must have shape \[\d+\], got \[2\]"):
        fashioniq_original(queries, split, asked, images, present=np.ones(2, bool))
    test, withheld = data.split("test"), data.compositions("test")
    rows = torch.ones(len(withheld), 1), torch.ones(len(test), 1)
    with pytest.raises(ValueError, match="targets must be known, got 75 of 75 withheld; evaluate the split"):
        fashioniq_original(withheld, test, *rows)
