"""Cached features, and training of compositions on them."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from placket import AttributeSchema
from placket.composed import (
    CachedFeatures,
    ComposedTrainer,
    FitConfig,
    Triplets,
    compose_queries,
    digest_of,
    fit,
    masked_cross_entropy,
    recall_at,
)
from placket.config import ScheduleConfig
from placket.data import Split
from placket.data.dataset import Labels
from placket.data.lists import Queries
from placket.nn import Composition
from placket.protocols import Result, compare, composed_recall

SMALL = {
    "agcn": "agcn,layers=1,heads=4,hidden=64",
    "tirg": "tirg",
    "combiner": "combiner,projection=64,hidden=128,dropout=0.1",
}


class Catalogue(NamedTuple):
    """Garments of shapes and colours; a text asks for the same shape in another colour."""

    images: CachedFeatures
    texts: CachedFeatures
    triplets: Triplets


DIMS, COLOURS = 32, 40


def catalogue(shapes: int, per_image: int, seed: int) -> Catalogue:
    """An image is a shape, a colour and noise; a text is a colour, in words that lie a quarter turn away."""
    common = torch.Generator().manual_seed(7)  # colours and words are those of every catalogue
    colours = F.normalize(torch.randn(COLOURS, DIMS, generator=common))
    elsewhere = F.normalize(torch.randn(COLOURS, DIMS, generator=common))
    own = torch.Generator().manual_seed(seed)
    forms = F.normalize(torch.randn(shapes, DIMS, generator=own))
    shape = torch.arange(shapes).repeat_interleave(COLOURS)
    colour = torch.arange(COLOURS).repeat(shapes)
    noise = torch.randn(len(shape), DIMS, generator=own) * 0.3 / DIMS**0.5
    images = CachedFeatures(F.normalize(forms[shape] + colours[colour] + noise))
    texts = CachedFeatures(F.normalize(0.3 * colours + elsewhere))
    reference = torch.arange(len(shape)).repeat_interleave(per_image)
    turn = torch.randint(1, COLOURS, (len(reference),), generator=own)
    wanted = (colour[reference] + turn) % COLOURS
    return Catalogue(images, texts, Triplets(reference, wanted, shape[reference] * COLOURS + wanted))


@pytest.fixture(scope="module")
def train() -> Catalogue:
    return catalogue(shapes=48, per_image=2, seed=0)


@pytest.fixture(scope="module")
def test() -> Catalogue:
    return catalogue(shapes=20, per_image=1, seed=1)


def measured(composition: nn.Module, data: Catalogue) -> Result:
    queries = Queries()
    for reference, target in zip(
        data.triplets.reference.tolist(), data.triplets.target.tolist(), strict=True
    ):
        queries.add(reference, target, ["in another colour"])
    nothing, count = np.zeros(0, np.int64), len(data.images)
    split = Split(
        "test",
        Path("."),
        AttributeSchema(()),
        count,
        (),
        Labels.gather(nothing, nothing, nothing, count, ()),
    )
    asked = compose_queries(composition, data.images, data.texts, data.triplets.reference, data.triplets.text)
    return composed_recall(
        queries.compositions(), split, asked.query, data.images.embedding, reference="kept"
    )


@pytest.fixture(scope="module")
def alone(test: Catalogue) -> dict[str, Result]:
    return {name: measured(Composition(name, DIMS), test) for name in ("image", "text", "sum")}


FAST = FitConfig(epochs=12, batch=256, lr=3e-3)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_learns_what_neither_image_nor_text_says(
    name: str, train: Catalogue, test: Catalogue, alone: dict[str, Result]
) -> None:
    """On shapes it has never seen. Image and text alone see which 40 or which 20 images are near, of 800."""
    composition = Composition(SMALL[name], DIMS, torch.Generator().manual_seed(0))
    losses: list[float] = []
    fit(composition, *train, FAST, lambda epoch, loss: losses.append(loss))
    assert not composition.training
    assert losses[-1] < losses[0] / 2
    found = measured(composition, test)
    for side in ("image", "text"):
        assert alone[side].overall < 50
        assert compare(alone[side], found).metrics["Recall@10"].interval[0] > 20
    assert compare(alone["sum"], found).metrics["Recall@10"].interval[0] > 0


def test_texts_of_others_find_what_others_sought(train: Catalogue, test: Catalogue) -> None:
    """So a query's text is read, not guessed from its image."""
    composition = Composition(SMALL["combiner"], DIMS, torch.Generator().manual_seed(0))
    fit(composition, *train, FAST)
    right = measured(composition, test).overall
    wrong = test.triplets._replace(text=(test.triplets.text + 1) % COLOURS)
    assert measured(composition, test._replace(triplets=wrong)).overall < right / 2


QUICK = FitConfig(epochs=3, batch=900, lr=1e-3, schedule=ScheduleConfig("cosine", warmup_steps=2))


def small(seed: int = 0) -> Composition:
    return Composition("agcn,layers=1,heads=2,hidden=16", DIMS, torch.Generator().manual_seed(seed))


def weights_of(composition: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in composition.state_dict().values()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_equal_seeds_give_equal_bits_whatever_the_generator(train: Catalogue) -> None:
    results = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        results.append(weights_of(fit(small(), *train, dataclasses.replace(QUICK, seed=seed))))
        assert torch.equal(torch.get_rng_state(), before)
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


@pytest.mark.parametrize("stop", [1, 4, 5])
def test_resuming_equals_going_on(stop: int, train: Catalogue) -> None:
    whole = weights_of(fit(small(), *train, QUICK))
    first = ComposedTrainer(small(), *train, QUICK)
    assert first.steps_per_epoch == 4
    for _ in range(stop):
        first.step()
    file = io.BytesIO()
    torch.save(first.state(), file)
    kept = first.state()
    first.step()  # what happens afterwards leaves the state alone
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    for state in (kept, loaded):
        second = ComposedTrainer(small(seed=1), *train, QUICK)
        second.load_state(state)
        second.run()
        assert equal(weights_of(second.composition), whole)
    other = ComposedTrainer(small(), *train, dataclasses.replace(QUICK, lr=1.0))
    with pytest.raises(ValueError, match=r"state must be of the configuration FitConfig\(.*lr=1.0"):
        other.load_state(loaded)


def test_every_epoch_sees_each_triplet_once(train: Catalogue) -> None:
    texts = train.triplets.text[:, None].expand(-1, 3).clone()
    texts[:, 1], texts[:, 2] = (texts[:, 0] + 1) % COLOURS, (texts[:, 0] + 2) % COLOURS
    trainer = ComposedTrainer(
        small(),
        train.images,
        train.texts,
        train.triplets._replace(text=texts),
        dataclasses.replace(QUICK, batch=640),
    )
    assert trainer.steps_per_epoch == 6  # of 3,840 triplets
    seen, drawn = [], []
    for step in range(12):
        trainer.done = step
        rows, text = trainer._batch()
        seen.append(rows)
        drawn.append((text - texts[rows, 0]) % COLOURS)
        again = trainer._batch()
        assert equal([rows, text], list(again))
    for epoch in (seen[:6], seen[6:]):
        assert torch.equal(torch.cat(epoch).sort().values, torch.arange(3840))
    assert not torch.equal(torch.cat(seen[:6]), torch.cat(seen[6:]))
    counts = torch.cat(drawn).bincount(minlength=3)
    assert len(counts) == 3
    assert ((counts > 2395) & (counts < 2725)).all()  # 2,560 each, give or take four deviations


def test_rate_follows_the_schedule(train: Catalogue) -> None:
    trainer = ComposedTrainer(small(), *train, QUICK)
    rates = []
    while trainer.done < trainer.steps:
        trainer.step()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    cosine = [0.5 * (1 + np.cos(np.pi * step / 12)) * 1e-3 for step in range(12)]
    assert rates == pytest.approx([cosine[0] / 2, *cosine[1:]])


def test_masked_cross_entropy_by_hand() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    ids = torch.tensor([4, 9, 4])
    # Rows 0 and 2 have one negative, row 1 has two; all at cosine 0 beside their own at 1.
    e = np.exp(-2.0)
    expected = (2 * np.log(1 + e) + np.log(1 + 2 * e)) / 3
    assert masked_cross_entropy(queries, targets, ids, 2.0).item() == pytest.approx(expected)
    plain = F.cross_entropy(2 * queries @ targets.T, torch.arange(3))
    assert masked_cross_entropy(queries, targets, torch.arange(3), 2.0).item() == plain.item()


def test_recall_at_by_hand() -> None:
    gallery = torch.eye(4)
    queries = torch.tensor([[4.0, 3, 2, 1], [1, 2, 3, 4], [1, 2, 3, 4]])
    targets = torch.tensor([1, 3, 0])
    assert recall_at(queries, gallery * 3, targets, (1, 2, 4)) == pytest.approx({1: 1 / 3, 2: 2 / 3, 4: 1})
    references = torch.tensor([0, -1, 2])
    found = recall_at(queries, gallery, targets, (1, 3), references=references)
    assert found == pytest.approx({1: 2 / 3, 3: 1})
    with pytest.raises(ValueError, match=r"recall_at: targets must have shape \[3\], got \[2\]"):
        recall_at(queries, gallery, targets[:2])


def test_queries_do_not_depend_on_the_batch(test: Catalogue) -> None:
    composition = small().train()
    rows = test.triplets.reference[:50], test.triplets.text[:50]
    whole = compose_queries(composition, test.images, test.texts, *rows)
    parts = compose_queries(composition, test.images, test.texts, *rows, batch=7)
    torch.testing.assert_close(tuple(parts), tuple(whole))
    assert composition.training
    assert not whole.query.requires_grad
    torch.testing.assert_close(whole.image_share, torch.full((50,), 0.5))  # of an untrained AGCN


def test_trainer_errors(train: Catalogue) -> None:
    images, texts, triplets = train
    with pytest.raises(ValueError, match="composition must have parameters to train, got none"):
        ComposedTrainer(Composition("sum", DIMS), *train)
    with pytest.raises(ValueError, match="target must be from 0 to 1919, got 1920"):
        ComposedTrainer(small(), images, texts, triplets._replace(target=triplets.target + 1))
    with pytest.raises(ValueError, match="text must be from 0 to 39, got -1"):
        ComposedTrainer(small(), images, texts, triplets._replace(text=triplets.text - 1))
    with pytest.raises(ValueError, match=r"triplets must have shapes .* got \[\[3840\], \[3840\], \[3\]\]"):
        ComposedTrainer(small(), images, texts, triplets._replace(target=triplets.target[:3]))
    with pytest.raises(ValueError, match="texts must have 32 dimensions like images, got 31"):
        ComposedTrainer(small(), images, CachedFeatures(texts.embedding[:, 1:]), triplets)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        FitConfig(batch=0)


# --- cached features


def some(n: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        "embedding": torch.randn(n, 6).to(dtype),
        "tokens": torch.randn(n, 3, 6).to(dtype),
        "mask": torch.rand(n, 3) > 0.5,
    }


def parts_of(arrays: dict[str, Tensor], size: int) -> Iterator[CachedFeatures]:
    for begin in range(0, len(arrays["embedding"]), size):
        yield CachedFeatures(**{name: array[begin : begin + size] for name, array in arrays.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("names", [("embedding",), ("embedding", "tokens"), ("embedding", "tokens", "mask")])
def test_features_come_back_bit_for_bit(names: tuple[str, ...], dtype: torch.dtype, tmp_path: Path) -> None:
    arrays = {name: array for name, array in some(11, dtype).items() if name in names}
    path = tmp_path / "images.features"
    written = CachedFeatures.write(path, parts_of(arrays, 4), count=11, model="tower", items="list é")
    opened = CachedFeatures.open(path, model="tower", items="list é")
    for features in (written, opened):
        assert (len(features), features.dims) == (11, 6)
        assert (features.model, features.items) == ("tower", "list é")
        for name in ("embedding", "tokens", "mask"):
            array = getattr(features, name)
            assert array is None if name not in names else torch.equal(array, arrays[name])
    rows = torch.tensor([3, 0, 3])
    embedding, tokens, mask = opened.take(rows, torch.device("cpu"))
    assert embedding.dtype == torch.float32
    assert torch.equal(embedding, arrays["embedding"][rows].float())
    assert (tokens is None, mask is None) == ("tokens" not in names, "mask" not in names)
    if tokens is not None:
        assert torch.equal(tokens, arrays["tokens"][rows].float())
    assert [entry.name for entry in tmp_path.iterdir()] == ["images.features"]


def test_other_readers_of_safetensors_read_the_file(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    arrays = some(5)
    CachedFeatures.write(tmp_path / "f", parts_of(arrays, 2), count=5, model="tower")
    found = load_file(tmp_path / "f")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], array.numpy()) for name, array in arrays.items())


def test_features_are_mapped_not_read(tmp_path: Path) -> None:
    """Opening takes no memory for the rows: what the process holds privately does not grow by the file."""
    rows = torch.ones(1 << 15, 256)
    path = tmp_path / "f"
    CachedFeatures.write(path, [CachedFeatures(rows)], count=len(rows), model="tower")
    opened = CachedFeatures.open(path)
    maps = Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else None
    if maps is None:
        pytest.skip("no /proc/self/maps to look at")
    assert str(path) in maps
    assert float(opened.embedding[12345, 67]) == 1


def test_training_from_a_file_equals_training_from_memory(train: Catalogue, tmp_path: Path) -> None:
    files = [
        CachedFeatures.write(tmp_path / name, [features], count=len(features), model="tower")
        for name, features in (("images", train.images), ("texts", train.texts))
    ]
    ours = fit(small(), *files, train.triplets, QUICK)
    assert equal(weights_of(ours), weights_of(fit(small(), *train, QUICK)))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path, arrays = tmp_path / "f", some(5)
    CachedFeatures.write(path, parts_of(arrays, 2), count=5, model="old")

    def failing() -> Iterator[CachedFeatures]:
        yield from parts_of(some(4), 2)
        raise RuntimeError("the tower fell")

    with pytest.raises(RuntimeError, match="the tower fell"):
        CachedFeatures.write(path, failing(), count=8, model="new")
    for count, message in ((4, "must have 4 rows together, got more"), (6, "6 rows together, got 5")):
        with pytest.raises(ValueError, match=message):
            CachedFeatures.write(path, parts_of(arrays, 2), count=count, model="new")
    with pytest.raises(ValueError, match="parts must be alike, got rows"):
        CachedFeatures.write(
            path,
            [CachedFeatures(torch.ones(2, 6)), CachedFeatures(torch.ones(2, 5))],
            count=4,
            model="new",
        )
    with pytest.raises(ValueError, match="parts must have 0 rows together, got 0"):
        CachedFeatures.write(path, [], count=0, model="new")
    assert torch.equal(CachedFeatures.open(path, model="old").embedding, arrays["embedding"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_open_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "f"
    CachedFeatures.write(path, parts_of(some(5), 2), count=5, model="tower", items="these")
    with pytest.raises(ValueError, match=r"model of '.*' must be 'other', got 'tower'; embed again"):
        CachedFeatures.open(path, model="other")
    with pytest.raises(ValueError, match=r"items of '.*' must be 'those', got 'these'; embed again"):
        CachedFeatures.open(path, items="those")
    with pytest.raises(FileNotFoundError, match="must be a file, got none; write it first"):
        CachedFeatures.open(tmp_path / "none")
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"x", whole[:30], b"", b"\xff" * 200):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="must be a whole safetensors file, got one with"):
            CachedFeatures.open(path)
    from safetensors.torch import save_file

    save_file({"embedding": torch.ones(2, 2)}, path)
    with pytest.raises(ValueError, match="must have format placket-features/1, got None"):
        CachedFeatures.open(path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"embedding": torch.ones(5)}, ValueError, r"embedding must have shape \[n, D\] of at least 1"),
        ({"embedding": torch.ones(0, 6)}, ValueError, r"of at least 1, got \[0, 6\]"),
        ({"embedding": torch.ones(5, 6).long()}, TypeError, "float32, bfloat16 or float16, got torch.int64"),
        ({"tokens": torch.ones(4, 3, 6)}, ValueError, r"tokens must have shape \[5, P, 6\], got \[4, 3, 6\]"),
        ({"tokens": torch.ones(5, 3, 6).half()}, TypeError, "tokens must be torch.float32 like embedding"),
        ({"mask": torch.ones(5, 2, dtype=torch.bool)}, ValueError, r"have shape \[5, 3\], got one of shape"),
        ({"mask": torch.ones(5, 3)}, TypeError, "mask must be bool, got torch.float32"),
        ({"tokens": None}, ValueError, "mask must be None without tokens, got one of shape"),
    ],
)
def test_features_of_wrong_shapes(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CachedFeatures(**some(5) | change)


def test_images_have_their_tokens_everywhere() -> None:
    features = CachedFeatures(**some(5))
    composition = Composition("sum", 6)
    rows = torch.arange(5)
    with pytest.raises(ValueError, match="mask of images must be None, got one"):
        compose_queries(composition, features, features, rows, rows)


def test_digest_tells_models_apart() -> None:
    first, second = small(), small()
    assert digest_of(first) == digest_of(second)
    assert (
        len(
            {
                digest_of(first),
                digest_of(first, "224"),
                digest_of(small(1)),
                digest_of(Composition("tirg", 4)),
            }
        )
        == 4
    )
    with torch.no_grad():
        second.get_parameter("gate.bias")[0] = -0.0
    assert digest_of(first) != digest_of(second)
