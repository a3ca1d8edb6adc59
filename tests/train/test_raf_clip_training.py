"""RaF-CLIP: training by regions and words, its spaces, and attributes added by their words alone."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import placket
from placket.cli import main
from placket.config import StageConfig, TrainerConfig
from placket.data import garments
from placket.evaluate import embed_pairs
from placket.nn import RafClip
from placket.text import Tokenizer

TRUNK = "resnet18,width=0.25,stage=2,embedding_dim=32"
TEXT = "clip_text,width=32,depth=1,heads=2,embedding_dim=32,context=24,vocabulary={}"
# No merge for each word is needed: bytes are tokens too.
MERGES = "a merge a line\nt h</w>\na r\n"
ALL = {"attribute_text": 1.0, "attribute_absent": 0.1, "view_agreement": 0.1}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> placket.data.Dataset:
    root = tmp_path_factory.mktemp("garments") / "set"
    garments.generate(root, items=60, size=64)
    return placket.data.open(root)


def make(data: placket.data.Dataset, **options: object) -> RafClip:
    tokenizer = Tokenizer.from_bytes(MERGES.encode(), clean="basic")
    settings = {"vocabulary": tokenizer, "preprocess": {"size": 48, "fit": "pad"}, **options}
    model = placket.create_model(
        "raf_clip",
        schema=data.schema,
        trunk=TRUNK,
        text=TEXT.format(len(tokenizer)),
        generator=torch.Generator().manual_seed(0),
        **settings,
    )
    assert isinstance(model, RafClip)
    return model


def stage(**options: object) -> StageConfig:
    settings: dict[str, object] = {
        "branches": ("image", "text"),
        "sampler": "images",
        "batch": 12,
        "losses": {"attribute_text": 1.0},
        "batch_norm": "frozen",
        "rates": {"": 1e-3},
        "epochs": 1,
        **options,
    }
    return StageConfig(**settings)  # type: ignore[arg-type]


def test_encode_is_the_systems(drawn: placket.data.Dataset) -> None:
    model = make(drawn).eval()
    split = drawn.split("valid")
    embedded = placket.embed_split(model, split)
    batch = next(
        iter(
            placket.data.Loader(
                split, batch=len(split), shuffle=False, preprocess=placket.data.Preprocess(**model.preprocess)
            )
        )
    )
    with torch.no_grad():
        expected = model.encode_all(batch.images)
    torch.testing.assert_close(embedded, expected, atol=1e-5, rtol=0)
    assert embedded.norm(dim=2).allclose(torch.ones(()))


def test_training_lowers_its_loss(drawn: placket.data.Dataset) -> None:
    model = make(drawn)
    trainer = placket.Trainer(model, drawn, stage(epochs=20), trainer=TrainerConfig(report_every=1))
    first = trainer.step()["attribute_text"]
    trainer.run()
    again = placket.Trainer(model, drawn, stage()).step()["attribute_text"]
    assert again < first - 0.1


def test_a_checkpoint_is_the_model(drawn: placket.data.Dataset, tmp_path: Path) -> None:
    model = make(drawn, category="pattern", views="both").eval()
    model.with_composition(placket.nn.Composition("tirg", model.embedding_dim))
    model.save(tmp_path)
    loaded = placket.load(tmp_path)
    assert isinstance(loaded, RafClip)
    assert loaded.config_dict() == model.config_dict()
    assert loaded.tokenizer.to_bytes() == model.tokenizer.to_bytes()
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(loaded.encode_all(images), model.encode_all(images))
        texts = ["the same in red", ""]
        assert torch.equal(loaded.compose(images, texts).query, model.compose(images, texts).query)


def test_words_follow_the_weights(drawn: placket.data.Dataset) -> None:
    model = make(drawn).eval()
    with torch.no_grad():
        before = model.words()
        assert model.words() is before
        model.text_projection.mul_(-1)
        torch.testing.assert_close(model.words(), -before)
    model.words().sum().backward()
    assert model.text_projection.grad.any()


def test_copies_and_pickles_are_independent_equals(drawn: placket.data.Dataset) -> None:
    model = make(drawn).eval()
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = model.encode_all(images)  # the tokenizer and the words are kept now
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other.encode_all(images), expected)
            other.text_projection.mul_(-1)
            assert not torch.equal(other.encode_all(images), expected)
            assert torch.equal(model.encode_all(images), expected)


@pytest.mark.parametrize("flip", [False, True])
def test_words_add_an_attribute(flip: bool, drawn: placket.data.Dataset, tmp_path: Path) -> None:
    model = make(drawn).eval()
    split = drawn.split("valid")
    with placket.index.build(model, split, tmp_path / "index", flip=flip) as index:
        assert index.spaces == {**{a.name: len(a.values) for a in drawn.schema.attributes}, "image": 32}
        longer = placket.extend(model, {"length of the coat": ["short", "long"]})
        assert placket.index.extend(index, longer, split) == ["length of the coat"]
        assert (index.spaces["length of the coat"], index.info()["flip"]) == (2, flip)
        added = placket.embed_split(longer, split, attributes=["length of the coat"], flip=flip)
        stored = index.get(split.filenames[4]).vectors["length of the coat"]
        np.testing.assert_allclose(stored, added[4, 0, :2], atol=1e-6)
    before, after = placket.embed_split(model, split), placket.embed_split(longer, split)
    assert torch.equal(after[:, : len(drawn.schema)], before)
    with placket.AttributeIndex.load(tmp_path / "index", read_only=True) as index:
        hits = placket.index.search_image(index, split.paths[0], ["length of the coat"], k=3)
        assert hits[0].score == pytest.approx(1, abs=1e-5)
        assert index.info()["flip"] == flip


def test_search_by_words(drawn: placket.data.Dataset, tmp_path: Path) -> None:
    model = make(drawn).eval()
    split = drawn.split("valid")
    with placket.index.build(model, split, tmp_path / "index") as index:
        by_text = placket.index.search_text(index, "a striped garment", k=len(split))
        with torch.no_grad():
            word = model.embed_texts(["a striped garment"])[0]
        rows = embed_pairs(model, split, *spaces_of(model, len(split)))
        expected = dict(zip(split.filenames, (rows @ word).tolist(), strict=True))
        assert {hit.id: hit.score for hit in by_text} == pytest.approx(expected, abs=1e-5)
        image, box = split.paths[1], split.record(1).box
        for hit in placket.index.search_image(index, image, text="but striped", box=box, k=2):
            assert hit.scores["by the image"] == pytest.approx(
                float(rows[list(split.filenames).index(hit.id)] @ rows[1]), abs=1e-4
            )
        with pytest.raises(ValueError, match="weights must not name 'image' with a text"):
            placket.index.search_image(index, image, ["image"], text="but striped")
    other = placket.create_model("triplet", schema=drawn.schema, trunk="resnet18,width=0.25")
    with (
        placket.index.build(other, split, tmp_path / "other") as index,
        pytest.raises(ValueError, match="search: text needs a model with words, raf_clip, got triplet"),
    ):
        placket.index.search_text(index, "red")


def spaces_of(model: RafClip, count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(count), np.full(count, list(model.spaces).index("image"))


def test_regions_in_two_views(drawn: placket.data.Dataset) -> None:
    model = make(drawn, views="both")
    trainer = placket.Trainer(model, drawn, stage(losses=ALL), regions=True)
    losses = trainer.step()
    assert losses.keys() == ALL.keys()
    regions = drawn.region_split("valid")
    embedded = placket.embed_split(model, regions)
    assert embedded.shape == (len(regions), len(drawn.schema), 32)
    crops = make(drawn)
    with pytest.raises(ValueError, match="'view_agreement' needs batches of both views, got one"):
        placket.Trainer(crops, drawn, stage(losses=ALL), regions=True).step()


@pytest.mark.parametrize("views", ["segmented", "both"])
@pytest.mark.parametrize("flip", [False, True])
def test_search_with_a_mask_is_a_search_by_region(
    views: str, flip: bool, drawn: placket.data.Dataset, tmp_path: Path
) -> None:
    model = make(drawn, views=views, preprocess={"size": 48, "fit": "pad", "box_margin": 0.05}).eval()
    regions = drawn.region_split("valid")
    assert regions.boxes is not None
    every = placket.embed_split(model, regions, attributes=list(model.spaces), flip=flip)
    with placket.index.build(model, regions, tmp_path / "index", images=range(9), flip=flip) as index:
        ids = list(index.ids())
        for row in range(9):
            mask, box = regions.mask(row), regions.boxes[row].tolist()
            one = placket.embed_image(
                model, regions.paths[row], list(model.spaces), box, mask=mask, flip=flip
            )
            # Resizing of a mirrored picture may round a level elsewhere.
            torch.testing.assert_close(one, every[row], rtol=0, atol=1e-3 if flip else 1e-5)
            found = placket.index.search_image(index, regions.paths[row], ["image"], box=box, mask=mask, k=9)
            score = next(hit.score for hit in found if hit.id == ids[row])
            assert score == pytest.approx(1, abs=1e-4)
        predicted = index.get(ids[3]).metadata["predicted"]
        roots = every[3, : len(drawn.schema)]
        assert predicted == {
            a.name: a.values[int(roots[i, : len(a.values)].argmax())]
            for i, a in enumerate(drawn.schema.attributes)
        }
        said = placket.index.search_image(
            index, regions.paths[8], text="but striped", box=box, mask=mask, k=9
        )
        by_image = {hit.id: hit.scores["by the image"] for hit in said}
        assert by_image == pytest.approx({hit.id: hit.score for hit in found}, abs=1e-5)


def test_where_the_mask_is(drawn: placket.data.Dataset, tmp_path: Path) -> None:
    model, crops = make(drawn, views="segmented").eval(), make(drawn).eval()
    image = drawn.split("valid").paths[0]
    mask = np.zeros((64, 64), bool)
    mask[10:34, 20:44] = True
    box = 20, 10, 44, 34
    around = placket.embed_image(model, image, box=box, mask=mask)
    assert torch.equal(placket.embed_image(model, image, mask=mask), around)
    # Without a mask it is the crop, of a photograph and of a split.
    split = drawn.split("valid")
    row = placket.embed_split(model, split)[0]
    torch.testing.assert_close(placket.embed_image(model, image, box=split.record(0).box), row)
    torch.testing.assert_close(placket.embed_split(crops, split)[0], row)
    # Of what the box holds nothing is blanked.
    torch.testing.assert_close(placket.embed_image(crops, image, box=box), around)
    assert not torch.allclose(placket.embed_image(model, image, mask=mask, box=(0, 0, 64, 64)), around)
    for wrong, box, kind, message in (
        (np.zeros((64, 64), bool), None, ValueError, "mask must show a pixel of .*, got none"),
        (mask, (0, 0, 20, 64), ValueError, "mask must show a pixel of the box in .*, got none"),
        (mask, (0, -9, 20, -1), ValueError, "mask must show a pixel of the box in .*, got none"),
        (mask[:60], None, RuntimeError, "mask must have its image's 64 x 64 pixels, got 64 x 60"),
    ):
        with pytest.raises(kind, match=message):
            placket.embed_image(model, image, box=box, mask=wrong)
    with pytest.raises(ValueError, match=r"mask needs a model of segmented regions, .* raf_clip of crops"):
        placket.embed_image(crops, image, mask=mask)


def test_masks_on_the_command_line(
    drawn: placket.data.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, split = make(drawn, views="segmented").eval(), drawn.split("valid")
    mask = np.zeros((64, 64), bool)
    mask[10:31, 20:44] = True
    numbers = mask.astype(np.uint8) * 3
    numbers[50:] = 7
    file = tmp_path / "a=3.png"
    Image.fromarray(numbers).save(file)
    assert np.array_equal(placket.data.read_mask(file, 3), mask)
    assert np.array_equal(placket.data.read_mask(file), numbers != 0)
    regions = drawn.region_split("valid")
    placket.index.build(model, regions, tmp_path / "index", images=range(9)).close()
    for given, shown in ((file, numbers != 0), (f"{file}=3", mask)):
        assert main(["search", str(tmp_path / "index"), split.paths[0], "--mask", str(given), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        with placket.AttributeIndex.load(tmp_path / "index", read_only=True) as index:
            hits = placket.index.search_image(index, split.paths[0], mask=shown)
        assert [(hit["id"], hit["score"]) for hit in found] == [(hit.id, hit.score) for hit in hits]


def test_recomputing_gives_the_same_gradients(drawn: placket.data.Dataset) -> None:
    moments = []
    for recompute in (0, 5):
        trainer = placket.Trainer(make(drawn), drawn, stage(recompute=recompute))
        trainer.step()
        moments.append(trainer.state().trainer)  # Adam's: of the first step they are the gradient's
    assert any("visual." in name for name in moments[0])
    for name, whole in moments[0].items():
        # The parts' sums are rounded in another order.
        torch.testing.assert_close(moments[1][name], whole, atol=1e-6, rtol=1e-3, msg=name)
    with pytest.raises(ValueError, match="stage: batch_norm must be frozen with recompute, got merged"):
        placket.Trainer(make(drawn), drawn, stage(recompute=5, batch_norm="merged"))


def test_a_tower_that_does_not_learn_stays(drawn: placket.data.Dataset) -> None:
    model = make(drawn)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    placket.Trainer(model, drawn, stage(branches=("text",))).step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert not any(name.startswith("visual.") for name in moved)


def test_an_interrupted_training_is_the_same(drawn: placket.data.Dataset) -> None:
    whole, parts = make(drawn), make(drawn)
    placket.Trainer(whole, drawn, stage(losses={"attribute_text": 1.0, "attribute_absent": 1.0})).run()
    settings = stage(losses={"attribute_text": 1.0, "attribute_absent": 1.0})
    first = placket.Trainer(parts, drawn, settings)
    first.run(2)
    state = first.state()
    first.step()
    second = placket.Trainer(parts, drawn, settings)
    second.load_state(state)
    second.run()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"category": "shoe"}, "attribute must be one of"),
        ({"views": "all"}, "raf_clip: views must be crop, segmented or both, got 'all'"),
    ],
)
def test_what_a_model_refuses(drawn: placket.data.Dataset, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(drawn, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": {"category_text": 1.0}}, "'category_text' needs a model with a category attribute"),
        ({"losses": {"words": 1.0}}, "stage: loss must be one of category_text, .*, got 'words'"),
        ({"branches": ("region",)}, "stage: branch must be one of image, text, got 'region'"),
        ({"copies": 2}, "stage: copies must be 1 for regions, got 2"),
        ({"batch_norm": "grouped", "sampler": "triplets"}, "batch_norm must be one of merged, frozen"),
    ],
)
def test_what_a_stage_refuses(drawn: placket.data.Dataset, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        placket.Trainer(make(drawn), drawn, stage(**options))
