"""MMFL-Net: its C++ model equals plain modules, and what a model of this package can do."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import plain_mmfl
import plain_trunks
import pytest
import torch
from torch import Tensor, nn

import placket
from placket.nn import MmflNet, ProductOutput
from placket.schema import AttributeSchema

SCHEMA = AttributeSchema.of({"colour": ["red", "blue", "green"], "sleeve": ["short", "long"]})
TRUNK = "resnet50,width=0.125,stage=4,last_stride=1"
SMALL = "resnet18,width=0.25,stage=4"
FORMS = {
    "whole": {},
    "no fusion": {"fusion_dim": 0},
    "no parts": {"stripes": ()},
    "no local": {"local": False},
    "nothing dropped": {"drop": 0.0},
    "no attributes": {"attributes": False},
    "plain": {"fusion_dim": 0, "stripes": (), "local": False, "attributes": False},
}


def make(trunk: str = SMALL, **options: object) -> MmflNet:
    settings = {"embedding_dim": 12, "generator": torch.Generator().manual_seed(0), **options}
    model = placket.create_model("mmfl", schema=SCHEMA, trunk=trunk, **settings)
    assert isinstance(model, MmflNet)
    return model


def plain_of(model: MmflNet) -> plain_mmfl.PlainMmfl:
    """Return plain modules with a model's weights, after these were made as after some training."""
    plain_trunks.randomize(model)
    c = model.config
    expansion, width, last = (4, 8, 1) if c.trunk == TRUNK else (1, 16, 2)
    trunk = plain_trunks.ResNet(
        [3, 4, 6, 3] if expansion == 4 else [2] * 4, expansion, width, last_stride=last
    )
    channels = [2 * width * expansion, 4 * width * expansion, 8 * width * expansion]
    return plain_mmfl.PlainMmfl.of(model, trunk, channels)


def assert_equal_outputs(ours: ProductOutput, expected: tuple[Tensor, Tensor, Tensor | None]) -> None:
    features, necks, logits = expected
    torch.testing.assert_close(ours.features, features)
    torch.testing.assert_close(ours.necks, necks)
    if logits is None:
        assert ours.attribute_logits.shape == (len(features), 0)
    else:
        torch.testing.assert_close(ours.attribute_logits, logits)
    torch.testing.assert_close(ours.embedding, nn.functional.normalize(necks.flatten(1), dim=1))


@pytest.mark.parametrize("trunk", [TRUNK, SMALL])
@pytest.mark.parametrize("form", FORMS)
def test_equals_plain_modules(form: str, trunk: str) -> None:
    model = make(trunk, **FORMS[form])
    module = plain_of(model).double().eval()
    model.double().eval()
    for shape in ((1, 3, 96, 64), (2, 3, 72, 80)):
        images = torch.randn(shape, dtype=torch.double)
        assert_equal_outputs(model(images), module(images))


@pytest.mark.parametrize("form", FORMS)
def test_equals_plain_modules_in_training(form: str) -> None:
    model = make(**FORMS[form])
    module = plain_of(model).double().train()
    model.double().train()
    images = torch.randn(4, 3, 96, 64, dtype=torch.double)
    ours, expected = model(images), module(images)
    assert_equal_outputs(ours, expected)
    weights = torch.randn_like(ours.necks)
    for out, features in ((ours, ours.features), (None, expected[0])):
        necks, logits = (out.necks, out.attribute_logits) if out else expected[1:]
        loss = (necks * weights).sum() + (features * weights.flip(0)).sum()
        (loss if logits is None else loss + logits.square().sum()).backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, module.get_buffer(name), msg=name)


def test_granularities() -> None:
    model = make().eval()
    assert model.features == ("global", *["part"] * 7, "local")
    assert model.spaces == {"product": 9 * 12}
    out = model(torch.randn(2, 3, 64, 64))
    assert {name: tuple(rows.shape) for name, rows in out.granularities.items()} == {
        "global": (2, 12),
        "part": (2, 84),
        "local": (2, 12),
    }
    necks = out.necks
    for name, rows in (("global", necks[:, :1]), ("part", necks[:, 1:8]), ("local", necks[:, 8:])):
        torch.testing.assert_close(
            out.granularities[name], nn.functional.normalize(rows.flatten(1), dim=1), msg=name
        )
    assert make(stripes=(), local=False).features == ("global",)


def test_published_size() -> None:
    """Of our reconstruction: what the documentation says, counted by hand from the equations."""
    with torch.device("meta"):
        model = placket.create_model("mmfl", schema=SCHEMA)
    trunk = sum(p.numel() for p in model.trunk.parameters())
    assert trunk == 23_508_032  # ResNet-50's without its classifier
    dim, f, e, features, values = 1024, 256, 256, 9, 5

    def normed(inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> int:
        return inputs // groups * outputs * kernel**2 + 2 * outputs

    node = 2 + 9 * f + normed(f, f)
    fusion = normed(512, f) + normed(1024, f) + normed(2048, f) + 4 * node + normed(3 * f, dim)
    inner = dim // 4
    block = normed(dim, inner) + normed(inner, inner, 3) + normed(inner, dim)
    light = inner * inner + normed(inner, inner, 3, inner)
    gate = inner * 16 + 16 + 16 * inner + inner
    local = block + normed(dim, inner) + 10 * light + gate + normed(inner, dim)
    rest = features * dim * e + features * e + features * e * values + values
    head = sum(p.numel() for p in model.head.parameters())
    assert head == fusion + 3 * block + local + rest


def test_predicts_attributes() -> None:
    model = make().eval()
    images = torch.randn(2, 3, 64, 64)
    assert model.predicts
    sleeve, colour = model.class_probabilities(images, ["sleeve", 0])
    expected = model(images).attribute_logits
    assert torch.equal(colour, expected[:, :3].softmax(1))
    assert torch.equal(sleeve, expected[:, 3:].softmax(1))
    with pytest.raises(ValueError, match="mmfl: attributes must be predicted, got a model without"):
        make(attributes=False).class_probabilities(images, [0])


def test_encode() -> None:
    model = make().eval()
    images = torch.randn(2, 3, 64, 64)
    rows = model.encode(images, ["product", 0])
    assert torch.equal(rows[:, 0], rows[:, 1])
    assert torch.equal(model.encode_all(images), rows[:, :1])
    with pytest.raises(ValueError, match="mmfl: space must be one of product, got 'colour'"):
        model.encode(images, ["colour"])


def test_a_grey_picture_has_an_embedding() -> None:
    """Of unit length, or, where a model that has learnt nothing sees nothing in it, zero."""
    model, grey = make().eval(), torch.zeros(1, 3, 64, 64)
    assert not model(grey).embedding.any()
    plain_trunks.randomize(model)
    assert model(grey).embedding.norm(dim=1).item() == pytest.approx(1.0, abs=1e-6)


def test_copies_pickles_saves_and_loads(tmp_path: Path) -> None:
    model = make(stripes=(3,)).eval()
    images = torch.randn(2, 3, 64, 64)
    model.save(tmp_path)
    loaded = placket.load(tmp_path)
    assert isinstance(loaded, MmflNet)
    assert loaded.config == model.config
    for other in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.encode_all(images), model.encode_all(images))


# aot_eager below: traced and decomposed in full, without a C++ compiler's minutes.


def test_compiles_in_training() -> None:
    model = make()
    compiled = copy.deepcopy(model)
    images = torch.randn(3, 3, 64, 64)
    ours = torch.compile(compiled, fullgraph=True, backend="aot_eager")(images)
    expected = model(images)
    torch.testing.assert_close(ours.embedding, expected.embedding)
    (ours.features.sum() + ours.attribute_logits.sum()).backward()
    (expected.features.sum() + expected.attribute_logits.sum()).backward()
    for (name, parameter), other in zip(model.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name)


class Encoder(nn.Module):
    def __init__(self, model: MmflNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode_all(images)


def test_exports_with_a_dynamic_batch() -> None:
    encoder = Encoder(make().eval())
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(encoder, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: batch},))
    program = program.run_decompositions()
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("trunk_maps" in name or "product_head" in name for name in operators)
    images = torch.randn(5, 3, 64, 64)
    torch.testing.assert_close(program.module()(images), encoder(images))


def test_bfloat16_autocast_stays_close() -> None:
    model = make().eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = model(images).embedding
    with torch.no_grad():
        high = model(images).embedding
    # bfloat16 has 8 bits; the trunk's twenty layers add up to a few of them.
    assert (low.float() - high).norm(dim=1).max() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"trunk": "vit_tiny_patch16_224"},
            "trunk must have 3 maps to be fused, got 'vit_tiny_.*' with 1",
        ),
        ({"stripes": (2, 0)}, "stripes must be 0 alone or numbers from 1, got 0 among others"),
        ({"drop": 1.0}, "drop must be "),
        ({"embedding_dim": 0}, "embedding_dim must be "),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)  # type: ignore[arg-type]


def test_a_trunk_without_stages_serves_without_fusion() -> None:
    trunk = "vit,width=32,depth=1,heads=4,patch=8,image=32"
    assert make(trunk, fusion_dim=0).eval()(torch.randn(1, 3, 32, 32)).embedding.shape == (1, 108)
