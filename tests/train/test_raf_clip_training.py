"""RaF-CLIP: training by regions and words, its spaces, and attributes added by their words alone."""

from __future__ import annotations

import pytest
import torch

import placket
from placket.config import StageConfig, TrainerConfig
from placket.data import garments
from placket.nn import RafClip
from placket.text import Tokenizer

TRUNK = "resnet18,width=0.25,stage=2,embedding_dim=32"
TEXT = "clip_text,width=32,depth=1,heads=2,embedding_dim=32,context=24,vocabulary={}"
# A merge for each word is not needed: bytes are tokens too.
MERGES = "a merge a line\nt h</w>\na r\n"


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
