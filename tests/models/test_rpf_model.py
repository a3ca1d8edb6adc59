from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from placket import _C, AttributeSchema, create_model, reference
from placket.nn import NetworkOutput, Pictures, Rpf, TensorSpec, Trunk, crop_input, joint_embedding
from placket.nn.spec_module import SpecModule

SCHEMA = AttributeSchema.of({name: ["no", "yes"] for name in ("neckline", "sleeve", "hem")})
TRUNK = "resnet18,width=0.25"
SHALLOW = "resnet18,width=0.125,stage=2"  # where tracing costs more than computing
PATCH = "vit,width=32,depth=2,heads=4,patch=8,image=32,dropout=0.1"


def make(patch: str | None = None, seed: int = 0, trunk: str = TRUNK, **options: object) -> Rpf:
    generator = torch.Generator().manual_seed(seed)
    return create_model(
        "rpf", schema=SCHEMA, trunk=trunk, patch=patch, attribute_dim=24, patch_size=32, heads=4,
        generator=generator, **options,
    )  # fmt: skip


def region_head(
    model: Rpf, features: Tensor, table: Tensor, ids: Tensor, background: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Region, background and attention, in the order of the reference."""
    region, attention, rest = torch.ops.placket.attribute_head(
        features, table, ids, model.region.head.tensors(), model.config.head, background
    )
    return region, rest, attention


def patch_head(model: Rpf, features: Tensor, table: Tensor, ids: Tensor) -> Tensor:
    weights = model.patch.head.tensors()
    out = torch.ops.placket.attribute_head(features, table, ids[:, None], weights, model.config.patch_head)
    return out[0].squeeze(1)


def named(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters())


def test_reference_sizes_and_names() -> None:
    schema = AttributeSchema.of({f"attribute {i}": ["a", "b"] for i in range(8)})
    with torch.device("meta"):
        model = create_model("rpf", schema=schema)
    count = sum(p.numel() for p in model.parameters())
    patch = sum(p.numel() for p in model.patch.parameters())
    assert (count, count - patch, patch) == (101_837_888, 11_439_680, 90_398_208)
    names = list(model.state_dict())
    assert names[:2] == ["attribute_embedding.weight", "region.trunk.conv1.weight"]
    assert model.region.head.get_parameter("pooled_proj.weight").shape == (1024, 1024)
    for name in (
        "region.trunk.layer3.5.bn3.running_var",
        "region.head.mlp.fc1.weight",
        "patch.trunk.blocks.11.attn.qkv.bias",
        "patch.head.attn.q.weight",
    ):
        assert name in names


@pytest.mark.parametrize("project_per_attribute", [False, True])
@pytest.mark.parametrize("project_background", [False, True])
def test_region_head_equals_formulas(project_background: bool, project_per_attribute: bool) -> None:
    model = make(project_background=project_background, project_per_attribute=project_per_attribute)
    model = model.double().eval()
    features = torch.randn(3, 64, 4, 5, dtype=torch.double)
    for parameter in model.region.head.parameters():
        nn.init.normal_(parameter, std=0.3)
    ids = torch.tensor([2, 0, 1])
    head, table = model.region.head, model.attribute_embedding.weight
    outputs = region_head(model, features, table, ids[:, None], background=True)
    expected = reference.rpf_region_head(features, table, ids, named(head), project_background)
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours.squeeze(1), theirs)
    parameters = [*head.parameters(), table]
    weights = [torch.randn_like(x) for x in expected]
    gradients = [
        torch.autograd.grad(sum((x * w).sum() for x, w in zip(xs, weights, strict=True)), parameters)
        for xs in ([x.squeeze(1) for x in outputs], expected)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("project_per_attribute", [False, True])
def test_region_head_under_the_same_attributes_equals_formulas(project_per_attribute: bool) -> None:
    options = {"project_background": True, "project_per_attribute": project_per_attribute}
    model = make(embedding_dim=40, **options).double().eval()
    features = torch.randn(3, 64, 4, 5, dtype=torch.double)
    head, table = model.region.head, model.attribute_embedding.weight
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    ids = [2, 0]
    shared = region_head(model, features, table, torch.tensor(ids), background=True)
    each = region_head(model, features, table, torch.tensor([ids] * 3), background=True)
    columns = [
        reference.rpf_region_head(features, table, torch.full((3,), i), named(head), True) for i in ids
    ]
    expected = [torch.stack(parts, 1) for parts in zip(*columns, strict=True)]
    weights = [torch.randn_like(x) for x in expected]
    parameters = [*head.parameters(), table]
    gradients = []
    for outputs in (shared, each, expected):
        for ours, theirs in zip(outputs, expected, strict=True):
            torch.testing.assert_close(ours, theirs)
        loss = sum((x * w).sum() for x, w in zip(outputs, weights, strict=True))
        gradients.append(torch.autograd.grad(loss, parameters))
    torch.testing.assert_close(gradients[0], gradients[2])
    torch.testing.assert_close(gradients[1], gradients[2])


@pytest.mark.parametrize("embedding_dim", [40, 64])
def test_region_head_with_more_attributes_than_positions_equals_formulas(embedding_dim: int) -> None:
    model = make(embedding_dim=embedding_dim, project_background=True).double().eval()
    features = torch.randn(3, 64, 1, 2, dtype=torch.double)
    head, table = model.region.head, model.attribute_embedding.weight
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    region, background, attention = region_head(model, features, table, torch.arange(3))
    assert background.numel() == 0
    for i in range(3):
        expected = reference.rpf_region_head(features, table, torch.full((3,), i), named(head), True)
        torch.testing.assert_close(region[:, i], expected[0])
        torch.testing.assert_close(attention[:, i], expected[2])


def test_projection_of_each_attribute_is_its_own() -> None:
    model = make(project_per_attribute=True).eval()
    shared = make()
    weight, bias = model.region.head.tensors()[8:10]
    assert (weight.shape, bias.shape) == ((3, 64, 64), (3, 64))
    own = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in shared.parameters())
    assert own == 2 * (64 * 64 + 64)
    # Initial values as of the shared one: uniform in +-1/8.
    for tensor in (weight, bias):
        assert 0.95 / 8 < tensor.abs().max() <= 1 / 8
    images = torch.randn(2, 3, 32, 32)
    before = model.encode_all(images)
    with torch.no_grad():
        weight[1] += 1
        bias[1] -= 1
    changed = (model.encode_all(images) != before).flatten(2).any(2)
    assert changed.tolist() == [[False, True, False]] * 2
    table = torch.randn(2, 24)
    with pytest.raises(ValueError, match=r"one projection for each of the 2 attributes, got \[3, 64, 64\]"):
        region_head(model, torch.randn(1, 64, 2, 2), table, torch.tensor([0]))


def test_patch_head_equals_formulas() -> None:
    model = make(PATCH).double().eval()
    features = torch.randn(3, 32, 4, 5, dtype=torch.double)
    head = model.patch.head
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    ids = torch.tensor([2, 0, 1])
    table = model.attribute_embedding.weight
    ours = patch_head(model, features, table, ids)
    expected = reference.rpf_patch_head(features, table, ids, named(head), 4)
    torch.testing.assert_close(ours, expected)
    parameters = [*head.parameters(), table]
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((x * weight).sum(), parameters) for x in (ours, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("project_per_attribute", [False, True])
def test_float32_within_1e_5_of_the_formulas(project_per_attribute: bool) -> None:
    model = make(PATCH, project_per_attribute=project_per_attribute).eval()
    images, crops, ids = torch.randn(3, 3, 64, 64), torch.randn(3, 3, 32, 32), torch.tensor([2, 0, 1])
    with torch.no_grad():
        out = model(images, ids, patch=False, background=True)
        patch = model.patch_embedding(crops, ids)
        table = model.attribute_embedding.weight
        region, background, attention = reference.rpf_region_head(
            model.region.trunk(images), table, ids, named(model.region.head)
        )
        patch_expected = reference.rpf_patch_head(
            model.patch.trunk(crops), table, ids, named(model.patch.head), 4
        )
        every = region_head(model, model.region.trunk(images), table, torch.arange(3))[0]
    torch.testing.assert_close(every[range(3), ids], region, rtol=0, atol=1e-5)
    joint = joint_embedding(out.region, patch, 0.3)
    for ours, expected in (
        (out.region, region),
        (out.background, background),
        (out.attention, attention),
        (patch, patch_expected),
        (joint, reference.rpf_joint_embedding(region, patch_expected, 0.3)),
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.attention.sum((1, 2)), torch.ones(3))
    torch.testing.assert_close(joint.norm(dim=1), torch.ones(3))


def test_attributes_by_name_and_id() -> None:
    model = make().eval()
    images = torch.randn(2, 3, 32, 32)
    both = model(images, torch.tensor([[0, 1], [2, 1]]))
    assert both.embedding.shape == (2, 2, 64)
    assert both.attention.shape == (2, 2, 2, 2)
    assert both.background is None
    torch.testing.assert_close(model(images, ["neckline", "hem"]).embedding, both.embedding[:, 0])
    torch.testing.assert_close(model(images, [1, 1]).embedding, both.embedding[:, 1])
    torch.testing.assert_close(model(images, "sleeve").embedding, both.embedding[:, 1])
    torch.testing.assert_close(model.encode(images, ["sleeve"])[:, 0], both.embedding[:, 1])


def test_encode_all_equals_each_attribute() -> None:
    model = make().eval()
    images = torch.randn(2, 3, 32, 32)
    every = model.encode_all(images)
    assert every.shape == (2, 3, 64)
    for i, name in enumerate(SCHEMA.names):
        torch.testing.assert_close(every[:, i], model(images, name).embedding)


def test_patch_branch_crops_inputs_and_pictures() -> None:
    model = make(PATCH).eval()
    images = torch.randn(2, 3, 64, 64)
    out = model(images, [0, 2])
    assert out.embedding.shape == (2, 128) == (2, model.embedding_dim)
    expected = reference.region_box(out.attention, torch.tensor([[64, 64]] * 2))
    assert torch.equal(out.box, expected)
    crops = crop_input(images, out.box, torch.arange(2), 32)
    torch.testing.assert_close(out.patch, model.patch_embedding(crops, torch.tensor([0, 2])))

    sizes = torch.tensor([[90, 70], [64, 80]])
    lengths = sizes.prod(1) * 3
    pixels = torch.randint(0, 256, (int(lengths.sum()),), dtype=torch.uint8)
    pictures = Pictures(pixels, torch.tensor([0, int(lengths[0])]), sizes)
    out = model(images, torch.tensor([[0, 1], [2, 1]]), pictures)
    assert out.patch.shape == (2, 2, 64)
    assert out.box.shape == (2, 2, 4)
    boxes = reference.region_box(out.attention.flatten(0, 1), sizes[[0, 0, 1, 1]])
    assert torch.equal(out.box.flatten(0, 1), boxes)
    torch.testing.assert_close(model.encode_all(images, pictures)[:, 1], out.embedding[:, 1])


def test_patch_branch_looks_at_squashed_boxes_of_squashed_pictures() -> None:
    model = make(PATCH, preprocess={"size": 64, "fit": "squash"}).eval()
    pixels = torch.randint(0, 256, (90, 40, 3), dtype=torch.uint8)
    batch = _C.prepare_image(pixels.numpy(), preprocess=_C.Preprocess(**model.preprocess))
    out = model(batch.images, [1], Pictures.of(batch, torch.device("cpu")))
    ((x0, y0, x1, y1),) = out.box.tolist()
    assert [[x0, y0, x1, y1]] == reference.region_box(
        out.attention, torch.tensor([[90, 40]]), squashed=True
    ).tolist()
    assert (y1 - y0) / (x1 - x0) == pytest.approx(90 / 40, rel=0.1)  # both are whole pixels
    cut = Image.fromarray(pixels.numpy()).crop((x0, y0, x1, y1))
    crop = _C.prepare_image(np.asarray(cut), preprocess=_C.Preprocess(**model.preprocess | {"size": 32}))
    torch.testing.assert_close(out.patch, model.patch_embedding(crop.images, torch.tensor([1])))


def test_crop_input_equals_interpolate_inside() -> None:
    images = torch.randn(2, 3, 20, 24)
    crop = crop_input(images, torch.tensor([[4, 2, 14, 12]]), torch.tensor([1]), 20)
    expected = F.interpolate(images[1:, :, 2:12, 4:14], (20, 20), mode="bilinear")
    # At its border a box sees the image beyond, where interpolate repeats the edge.
    torch.testing.assert_close(crop[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    whole = crop_input(images, torch.tensor([[0, 0, 24, 20]]), torch.tensor([0]), 40)
    stretched = F.interpolate(images[:1], (40, 40), mode="bilinear")
    torch.testing.assert_close(whole, stretched)


def test_training_mode_has_dropout_and_background() -> None:
    model = make()
    images = torch.randn(4, 3, 64, 64)
    first, second = model(images, "hem"), model(images, "hem")
    assert first.background.shape == (4, 64)
    assert not torch.equal(first.region, second.region)
    torch.testing.assert_close(first.attention, second.attention)


def test_groups_equal_separate_passes() -> None:
    merged, separate = (make(dropout=0.0).double() for _ in range(2))
    images, ids = torch.randn(6, 3, 32, 32, dtype=torch.double), torch.tensor([0, 1] * 3)
    ours = merged(images, ids, groups=3).region
    parts = [separate(*part).region for part in zip(images.chunk(3), ids.chunk(3), strict=True)]
    torch.testing.assert_close(ours, torch.cat(parts))


def test_deepcopy_and_pickle_are_independent_equals() -> None:
    model = make(PATCH).eval()
    images, crops, ids = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32), torch.tensor([0, 2])

    def outputs(m: Rpf) -> list[Tensor]:
        return [m(images, ids, patch=False).region, m.patch_embedding(crops, ids)]

    before = outputs(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(outputs(other), before, rtol=0, atol=0)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert all(not tensor.any() for tensor in other.region.head.tensors())
        torch.testing.assert_close(outputs(model), before, rtol=0, atol=0)


def test_conversion_reaches_the_tensors() -> None:
    model = make().to(torch.double)
    assert {tensor.dtype for tensor in model.region.trunk.tensors()} == {torch.double}
    assert model(torch.randn(2, 3, 32, 32).double(), "hem").embedding.dtype == torch.double


def test_initial_values_come_from_the_generator() -> None:
    first, same, other = make(PATCH).state_dict(), make(PATCH).state_dict(), make(PATCH, seed=1).state_dict()
    torch.testing.assert_close(first, same, rtol=0, atol=0)
    assert not torch.equal(first["patch.trunk.pos_embed"], other["patch.trunk.pos_embed"])
    region = make().state_dict()
    torch.testing.assert_close({name: first[name] for name in region}, region, rtol=0, atol=0)


def test_truncated_normal() -> None:
    spec = TensorSpec("weight", (500, 400), "truncated_normal", 0.02, False)
    values = SpecModule([spec]).tensors()[0].detach()
    assert values.abs().max() <= 0.04
    # Of a normal cut at two standard deviations: 0.8796 of its scale; the spread of 200,000 draws is 0.2 %.
    assert abs(values.std().item() / 0.02 - 0.8796) < 0.005
    assert abs(values.mean().item()) < 0.0002


class Downsample(nn.Module):
    """A trunk of the caller's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 8, 8)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images)


def test_any_module_can_be_the_trunk() -> None:
    trunk = Downsample()
    model = create_model("rpf", schema=SCHEMA, trunk=trunk, patch=None, attribute_dim=8)
    assert model.config.trunk == "module,channels=10"
    assert "region.trunk.conv.weight" in model.state_dict()
    model(torch.randn(2, 3, 32, 32), "hem").region.square().sum().backward()
    assert trunk.conv.weight.grad is not None
    built_in = create_model("rpf", schema=SCHEMA, trunk=Trunk(SHALLOW), patch=None)
    assert built_in.config.trunk == SHALLOW
    trunk.num_features = 10
    assert create_model("rpf", schema=SCHEMA, trunk=trunk, patch=None).embedding_dim == 10


def region_output(model: Rpf, images: Tensor, ids: Tensor) -> NetworkOutput:
    return model(images, ids, patch=False)


# aot_eager below: traced and decomposed in full, without a C++ compiler's minutes.


@pytest.mark.parametrize("project_per_attribute", [False, True])
def test_compiles_in_evaluation(project_per_attribute: bool) -> None:
    model = make(trunk=SHALLOW, project_per_attribute=project_per_attribute).eval()
    images, ids = torch.randn(3, 3, 32, 32), torch.tensor([0, 2, 1])
    with torch.no_grad():
        ours = torch.compile(region_output, fullgraph=True, backend="aot_eager")(model, images, ids)
        torch.testing.assert_close(ours.embedding, region_output(model, images, ids).embedding)


def test_compiles_in_training() -> None:
    model = make(trunk=SHALLOW, dropout=0.0)
    compiled = copy.deepcopy(model)
    images, ids = torch.randn(3, 3, 32, 32), torch.tensor([0, 2, 1])
    ours = torch.compile(region_output, fullgraph=True, backend="aot_eager")(compiled, images, ids)
    expected = region_output(model, images, ids)
    torch.testing.assert_close(ours.embedding, expected.embedding)
    ours.region.sum().backward()
    expected.region.sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name)
    torch.testing.assert_close(compiled.state_dict(), model.state_dict())


class Encoder(nn.Module):
    """The embedding path as export takes it."""

    def __init__(self, model: Rpf) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode_all(images)


def test_exports_with_a_dynamic_batch() -> None:
    encoder = Encoder(make(PATCH, trunk=SHALLOW, project_per_attribute=True).eval())
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(encoder, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    program = program.run_decompositions()
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("trunk_features" in name or "rpf_" in name for name in operators)
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(images), encoder(images))


def test_data_parallel_gives_the_same_gradient(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = make(dropout=0.0)
    other = copy.deepcopy(model)
    images, ids = torch.randn(3, 3, 32, 32), torch.tensor([0, 2, 1])
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(other)
        wrapped(images, ids, background=False).region.sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    model(images, ids, background=False).region.sum().backward()
    for (name, parameter), copied in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(copied.grad, parameter.grad, msg=name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: create_model("rpn", schema=SCHEMA),
            "create_model: name must be one of ",
        ),
        (
            lambda: make(margin=0.2),
            "create_model: options of rpf must be among trunk, patch,",
        ),
        (
            lambda: make()(torch.randn(2, 3, 32, 32), ["hem", "slevee"]),
            "got 'slevee'; closest is 'sleeve'",
        ),
        (
            lambda: make()(torch.randn(2, 3, 32, 32), torch.tensor([0, 1, 2])),
            "rpf: attributes must have shape [B] or [B, K] with B = 2, got [3]",
        ),
        (
            lambda: make(PATCH, embedding_dim=48),
            (
                "rpf_region: embedding_dim must be the 64 channels of the map unless project_background is "
                "true, got 48"
            ),
        ),
        (lambda: make(region_weight=1.5), "network: region_weight must be from 0 to 1, got 1.5"),
        (
            lambda: create_model("rpf", schema=SCHEMA, trunk=nn.Flatten(), patch=None),
            "trunk: output must have shape [B, C, h, w], got [1, 12288]",
        ),
        (
            lambda: create_model("rpf", schema=SCHEMA, trunk=Downsample(), patch=None)(
                torch.randn(2, 3, 32, 32), 0, groups=2
            ),
            "network: groups must be 1 with a module of the caller's as trunk, got 2",
        ),
    ],
)
def test_errors_name_the_value(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
