"""M3-Net's head against its formulas, one attribute and one class after another."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import placket
from placket import AttributeSchema, create_model, reference
from placket.nn import M3Net, NetworkOutput

VALUES = (3, 1, 4)
SCHEMA = AttributeSchema.of(
    {f"attribute {n}": [str(v) for v in range(count)] for n, count in enumerate(VALUES)}
)
TRUNK = "resnet18,width=0.25"
SHALLOW = "resnet18,width=0.125,stage=2"  # where tracing costs more than computing
VARIANTS = ("full", "attribute", "class")


def make(variant: str = "full", trunk: str = TRUNK, seed: int = 0) -> M3Net:
    return create_model(
        "m3net", schema=SCHEMA, trunk=trunk, variant=variant, attribute_dim=24, embedding_dim=20,
        class_dim=12, class_query_dim=16, class_output_dim=10, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def run_head(model: M3Net, features: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    table = next(model.attribute_embedding.parameters(), None)
    weights = model.region.head.tensors()
    return torch.ops.placket.class_head(features, table, ids, weights, model.config.head)


def by_formulas(model: M3Net, features: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    table = next(model.attribute_embedding.parameters(), None)
    weights = dict(model.region.head.named_parameters())
    return reference.m3net_head(features, table, ids, weights, VALUES)


def scattered(model: M3Net) -> M3Net:
    """The model with weights so large that gates and attentions are far from uniform."""
    for parameter in model.region.head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_head_equals_formulas(variant: str, images: int) -> None:
    model = scattered(make(variant).double().eval())
    features = torch.randn(images, 64, 4, 5, dtype=torch.double, requires_grad=True)
    ids = torch.tensor([2, 0, 1])[:images]
    embedding, attention, *classes = run_head(model, features, ids[:, None])
    outputs = (embedding.squeeze(1), attention.squeeze(1), *classes)
    expected = by_formulas(model, features, ids)
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(attention.sum((2, 3)), torch.ones(images, 1, dtype=torch.double))
    parameters = [*model.region.head.parameters(), *model.attribute_embedding.parameters(), features]
    probes = [torch.randn_like(x) for x in expected]
    gradients = [
        torch.autograd.grad(sum((x * p).sum() for x, p in zip(xs, probes, strict=True)), parameters)
        for xs in (outputs, expected)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("variant", VARIANTS)
def test_single_precision_stays_within_1e_5(variant: str) -> None:
    model = make(variant).eval()
    features = torch.randn(3, 64, 4, 5)
    ids = torch.tensor([2, 0, 1])
    ours = run_head(model, features, ids[:, None])[0].squeeze(1)
    torch.testing.assert_close(ours, by_formulas(model, features, ids)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_attributes_for_every_image(variant: str) -> None:
    model = scattered(make(variant).eval())
    features = torch.randn(2, 64, 3, 4)
    shared = run_head(model, features, torch.tensor([2, 0]))
    each = run_head(model, features, torch.tensor([[2, 0], [2, 0]]))
    for x, y in zip(shared, each, strict=True):
        torch.testing.assert_close(x, y)
    assert shared[0].shape == (2, 2, model.embedding_dim)


def test_sizes_and_names() -> None:
    assert [make(variant).embedding_dim for variant in VARIANTS] == [30, 30, 10]
    model = make()
    names = list(model.state_dict())
    assert names[0] == "class_centres"
    assert names[1] == "attribute_embedding.weight"
    assert model.class_centres.shape == (sum(VALUES), 12)
    assert not model.class_centres.any()
    assert model.region.head.get_parameter("class_query.weight").shape == (24, 16 + 20)
    assert "attribute_embedding.weight" not in make("class").state_dict()
    with torch.device("meta"):
        published = create_model("m3net", schema=AttributeSchema.of({"a": [str(i) for i in range(54)]}))
    head = sum(p.numel() for p in published.region.head.parameters())
    # Linear layers of inputs and outputs as in the head's comment, with biases; W_o without.
    layers = [(1024, 512), (512, 512), (512, 512), (1536, 512), (512, 1024), (1024, 512), (1024, 512),
              (1024, 512), (1024, 128), (128, 54)]  # fmt: skip
    assert head == sum(i * o + o for i, o in layers) + 54 * 512 + 128 * 128


def test_network_output() -> None:
    model = make().eval()
    images = torch.randn(2, 3, 32, 48)
    one = model(images, "attribute 2")
    assert one.embedding.shape == (2, 30)
    assert one.attention is not None
    assert one.attention.shape == (2, 2, 3)
    assert one.patch is None
    assert one.background is None
    assert one.box is None
    assert one.class_embedding is not None
    assert one.class_embedding.shape == (2, 8, 12)
    assert one.class_logits is not None
    assert one.class_logits.shape == (2, 8)
    several = model(images, torch.tensor([[2, 0], [2, 1]]))
    assert several.embedding.shape == (2, 2, 30)
    torch.testing.assert_close(several.class_embedding, one.class_embedding)
    torch.testing.assert_close(several.embedding[:, 0], one.embedding)
    torch.testing.assert_close(model.encode_all(images)[:, 2], one.embedding)
    rpf = create_model("rpf", schema=SCHEMA, trunk=TRUNK, patch=None)(images, "attribute 0")
    assert rpf.class_embedding is None
    assert rpf.class_logits is None


def test_embedding_is_of_its_own_attributes_classes() -> None:
    """What another attribute's classifier says does not reach an embedding."""
    model = make().eval()
    images = torch.randn(2, 3, 32, 32)
    before = model.encode_all(images)
    with torch.no_grad():
        model.region.head.get_parameter("classifier.bias")[:2] += torch.tensor([3.0, -3.0])
    changed = (model.encode_all(images) != before).flatten(2).any(2)
    assert changed.all(0).tolist() == [True, False, False]
    assert changed.any(0).tolist() == [True, False, False]


def test_saves_and_loads(tmp_path: Path) -> None:
    model = make("class").eval()
    model.class_centres.normal_()
    model.save(tmp_path)
    loaded = placket.load(tmp_path)
    assert isinstance(loaded, M3Net)
    assert loaded.config == model.config
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.encode_all(images), model.encode_all(images))
    assert torch.equal(loaded.class_centres, model.class_centres)


def outputs(model: M3Net, images: Tensor, ids: Tensor) -> NetworkOutput:
    return model(images, ids)


# aot_eager below: traced and decomposed in full, without a C++ compiler's minutes.


@pytest.mark.parametrize("variant", VARIANTS)
def test_compiles_in_training(variant: str) -> None:
    model = make(variant, trunk=SHALLOW)
    compiled = copy.deepcopy(model)
    images, ids = torch.randn(3, 3, 32, 32), torch.tensor([0, 2, 1])
    ours = torch.compile(outputs, fullgraph=True, backend="aot_eager")(compiled, images, ids)
    expected = outputs(model, images, ids)
    for x, y in ((ours.embedding, expected.embedding), (ours.class_logits, expected.class_logits)):
        torch.testing.assert_close(x, y)
    (ours.embedding.sum() + ours.class_logits.sum()).backward()
    (expected.embedding.sum() + expected.class_logits.sum()).backward()
    for (name, parameter), other in zip(model.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name)


class Encoder(nn.Module):
    def __init__(self, model: M3Net) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode_all(images)


@pytest.mark.parametrize("variant", VARIANTS)
def test_exports_with_a_dynamic_batch(variant: str) -> None:
    encoder = Encoder(make(variant, trunk=SHALLOW).eval())
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(encoder, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    program = program.run_decompositions()
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("trunk_features" in name or "_head" in name for name in operators)
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(images), encoder(images))


def test_bfloat16_autocast_stays_close() -> None:
    model = make().eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = model(images, "attribute 0")
    with torch.no_grad():
        high = model(images, "attribute 0")
    # bfloat16 has 8 bits; the trunk's twenty layers add up to a few of them.
    assert (low.embedding.float() - high.embedding).norm(dim=1).max() < 0.05


def test_what_does_not_fit_is_refused() -> None:
    weights = make().region.head.tensors()
    table, ids, features = torch.randn(3, 24), torch.tensor([0]), torch.randn(1, 64, 2, 2)
    run = torch.ops.placket.class_head
    with pytest.raises(ValueError, match=r"classes must be integers of at least 1 with / between them, got"):
        run(features, table, ids, weights, "m3net,classes=3/x")
    with pytest.raises(ValueError, match=r"classes must be integers .* got nothing"):
        run(features, table, ids, weights, "m3net")
    with pytest.raises(ValueError, match=r"integers of at least 1 .* got '3/0'"):
        run(features, table, ids, weights, "m3net,classes=3/0")
    with pytest.raises(ValueError, match="table must have one row for each of the 3 attributes"):
        run(features, table[:2], ids, weights, make().config.head)
    rpf = create_model("rpf", schema=SCHEMA, trunk=TRUNK, patch=None, attribute_dim=24)
    with pytest.raises(ValueError, match="head must have a class sub-network, got 'rpf_region"):
        run(features, table, ids, rpf.region.head.tensors(), rpf.config.head)
    with pytest.raises(ValueError, match="variant must be one of full, attribute, class"):
        make("both")
