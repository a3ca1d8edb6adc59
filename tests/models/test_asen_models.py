from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import placket
from placket import _C, AttributeSchema, create_model, explain, reference
from placket.nn import AsenPlusPlus, AttributeNetwork

SCHEMA = AttributeSchema.of({name: ["no", "yes"] for name in ("neckline", "sleeve", "hem")})
SHALLOW = "resnet18,width=0.125,stage=2"  # 16 channels
METHODS = ["asen", "asen_v2", "asen_plus_plus", "csn", "triplet"]
ATTENDING = METHODS[:3]


def make(method: str, trunk: str = SHALLOW, **options: object) -> AttributeNetwork:
    if method in ATTENDING:
        options = {"attribute_dim": 12, "hidden_dim": 6, **options}
    if method == "asen_plus_plus":
        options = {"patch": None, "attention_dim": 10, "embedding_dim": 14, **options}
    return create_model(
        method, schema=SCHEMA, trunk=trunk, generator=torch.Generator().manual_seed(0), **options
    )


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def randomize(model: AttributeNetwork) -> AttributeNetwork:
    """Give the head values far from its initial ones."""
    for name, tensor in tensors(model.region.head).items():
        if name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 2)
        else:
            nn.init.normal_(tensor, std=0.4)
    return model


def native_head(
    model: AttributeNetwork, features: Tensor, ids: Tensor, batch_statistics: bool = False
) -> tuple[Tensor, Tensor]:
    """Embedding and attention of the C++ head."""
    table = next(model.attribute_embedding.parameters(), None)
    weights = model.region.head.tensors()
    head = model.config.head
    embedding, attention, background = torch.ops.placket.attribute_head(
        features, table, ids, weights, head, True, batch_statistics, batch_statistics, 1
    )
    assert background.numel() == 0
    return embedding, attention


def plain_head(
    model: AttributeNetwork, features: Tensor, ids: Tensor, batch_statistics: bool = False
) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch, attributes one after another; ids [B, K]."""
    table = next(model.attribute_embedding.parameters(), None)
    weights = tensors(model.region.head)

    def one(attributes: Tensor) -> tuple[Tensor, Tensor]:
        match model.name:
            case "asen":
                return reference.asen_head(features, attributes, weights)
            case "asen_v2":
                return reference.asen_v2_head(features, table, attributes, weights, batch_statistics)
            case "asen_plus_plus":
                return reference.asen_plus_plus_head(features, table, attributes, weights)
            case "csn":
                return reference.csn_head(features, attributes, weights), features.new_empty(0)
            case _:
                return reference.triplet_head(features, weights), features.new_empty(0)

    parts = [one(attributes) for attributes in ids.T]
    embedding, attention = (torch.stack(part, 1) for part in zip(*parts, strict=True))
    return embedding, attention if attention.numel() else attention.flatten()


@pytest.mark.parametrize(
    ("method", "count"), [("asen", 11_704_897), ("asen_v2", 10_910_784), ("asen_plus_plus", 20_984_064)]
)
def test_published_sizes(method: str, count: int) -> None:
    schema = AttributeSchema.of({f"attribute {i}": ["a", "b"] for i in range(8)})
    with torch.device("meta"):
        model = create_model(method, schema=schema)
    assert sum(p.numel() for p in model.parameters()) == count
    assert sum(p.numel() for p in model.region.trunk.parameters()) == 8_543_296
    assert model.config == model.config_type()
    if isinstance(model, AsenPlusPlus):
        local = sum(p.numel() for p in model.patch.parameters())
        assert (count - local, local) == (11_959_360, 9_024_704)
        assert (model.config.patch_size, model.config.box_threshold) == (112, 0.1)
        assert (model.config.region_weight, model.embedding_dim) == (0.6, 2048)
        with torch.device("meta"):
            alone = create_model(method, schema=schema, patch=None)
        assert sum(p.numel() for p in alone.parameters()) == 11_959_360
    else:
        assert model.embedding_dim == 1024


def test_names_and_initial_values() -> None:
    v1, v2, csn = (make(method) for method in ("asen", "asen_v2", "csn"))
    assert [name for name in v1.state_dict() if not name.startswith("region.trunk.")] == [
        f"region.head.{name}"
        for name in (
            "image_proj.weight", "image_proj.bias", "attention_table.weight", "attention_proj.weight",
            "attention_proj.bias", "gate_table.weight", "gate.fc1.weight", "gate.fc1.bias", "gate.fc2.weight",
            "gate.fc2.bias", "pooled_proj.weight", "pooled_proj.bias",
        )
    ]  # fmt: skip
    assert [name for name, _ in v2.region.head.named_buffers()] == [
        "image_norm.running_mean",
        "image_norm.running_var",
    ]
    # A linear layer of the one-hot attribute: uniform in +-1/sqrt(3).
    table = v1.region.head.get_parameter("gate_table.weight")
    assert 0.9 / 3**0.5 < table.abs().max() <= 1 / 3**0.5
    wide = create_model("csn", schema=SCHEMA, trunk=SHALLOW, embedding_dim=20_000)
    masks = wide.region.head.get_parameter("masks.weight").detach()
    # N(0.9, 0.7): of 60,000 draws the mean spreads by 0.003, the deviation by 0.002.
    assert abs(masks.mean().item() - 0.9) < 0.015
    assert abs(masks.std().item() - 0.7) < 0.01
    assert not list(csn.attribute_embedding.parameters())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_head_and_gradients_equal_formulas(method: str, batch: int, training: bool) -> None:
    model = randomize(make(method)).double()
    features = torch.randn(batch, 16, 3, 5, dtype=torch.double, requires_grad=True)
    ids = torch.tensor([[2, 0], [1, 1], [0, 2]])[:batch]
    parameters = [features, *model.region.head.parameters(), *model.attribute_embedding.parameters()]
    expected = plain_head(model, features, ids, training)
    outputs = native_head(model, features, ids, training)
    weights = [torch.randn_like(x) for x in expected]
    gradients = []
    for out in (outputs, expected):
        torch.testing.assert_close(out, expected)
        loss = sum((x * w).sum() for x, w in zip(out, weights, strict=True))
        gradients.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("method", METHODS)
def test_attributes_of_all_images_equal_those_of_each(method: str) -> None:
    model = randomize(make(method)).double()
    features = torch.randn(3, 16, 3, 5, dtype=torch.double)
    shared = native_head(model, features, torch.tensor([2, 0]))
    torch.testing.assert_close(shared, plain_head(model, features, torch.tensor([[2, 0]] * 3)))
    parameters = [*model.region.head.parameters(), *model.attribute_embedding.parameters()]
    each = native_head(model, features, torch.tensor([[2, 0]] * 3))
    weight = torch.randn_like(each[0])
    gradients = [torch.autograd.grad((out[0] * weight).sum(), parameters) for out in (shared, each)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("method", METHODS)
def test_float32_within_1e_5_of_the_formulas(method: str) -> None:
    model = make(method).eval()
    images, ids = torch.randn(2, 3, 64, 48), torch.tensor([[2, 0], [1, 2]])
    with torch.no_grad():
        out = model(images, ids)
        embedding, attention = plain_head(model, model.region.trunk(images), ids)
        every = model.encode_all(images)
    torch.testing.assert_close(out.region, embedding, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.embedding, F.normalize(embedding, dim=2), rtol=0, atol=1e-5)
    torch.testing.assert_close(every[:, 2], out.embedding[[0, 1], [0, 1]], rtol=0, atol=1e-5)
    assert out.background is None
    if method in ATTENDING:
        torch.testing.assert_close(out.attention, attention, rtol=0, atol=1e-5)
        torch.testing.assert_close(out.attention.sum((2, 3)), torch.ones(2, 2))
    else:
        assert out.attention is None


def test_asen_by_hand() -> None:
    """Two positions and two channels, all other widths 1."""
    weights = {
        "image_proj.weight": torch.tensor([[1.0, 0.0]]),
        "image_proj.bias": torch.zeros(1),
        "attention_table.weight": torch.tensor([[9.0], [0.5493061443340549]]),  # tanh(0.5493...) = 0.5
        "attention_proj.weight": torch.tensor([[2.0]]),
        "attention_proj.bias": torch.tensor([0.1]),
        "gate_table.weight": torch.tensor([[9.0, 9.0], [-1.0, 0.5]]),
        "gate.fc1.weight": torch.tensor([[1.0, 0.0, 0.0, 2.0]]),
        "gate.fc1.bias": torch.zeros(1),
        "gate.fc2.weight": torch.tensor([[0.0], [1.0]]),
        "gate.fc2.bias": torch.tensor([0.0, -3.0]),
        "pooled_proj.weight": torch.tensor([[1.0, 1.0], [0.0, 2.0]]),
        "pooled_proj.bias": torch.tensor([0.0, 1.0]),
    }
    features = torch.tensor([[[[1.0, 3.0]], [[2.0, 0.0]]]])
    # Logits tanh(tanh(1) + 0.1) and tanh(tanh(3) + 0.1) are 0.697078 and 0.798716; pooled (2.050775,
    # 0.949225); hidden 2.050775 + 2 relu(0.5) = 3.050775; gate (0.5, sigmoid(0.050775) = 0.512691);
    # gated (1.025388, 0.486659).
    expected = torch.tensor([[1.5120466505798686, 1.973318239924157]])
    attention = torch.tensor([[[0.47461246938220997, 0.5253875306177901]]])
    plain = reference.asen_head(features, torch.tensor([1]), weights)
    torch.testing.assert_close(plain, (expected, attention))
    head = "asen,attribute_dim=1,embedding_dim=2,hidden_dim=1"
    native = torch.ops.placket.attribute_head(features, None, torch.tensor([1]), [*weights.values()], head)
    torch.testing.assert_close(native[:2], (expected[:, None], attention[:, None]))


def test_first_version_bounds_its_attention() -> None:
    model = randomize(make("asen"))
    attention = native_head(model, 100 * torch.randn(4, 16, 3, 5), torch.arange(3))[1].flatten(2)
    # Logits are in [-1, 1]; both ends are reached with such features.
    ratio = attention.amax(2) / attention.amin(2)
    assert 0.5 * np.e**2 < ratio.max() <= np.e**2 * (1 + 1e-6)


def test_triplet_network_knows_no_attribute() -> None:
    model = make("triplet").eval()
    every = model.encode_all(torch.randn(2, 3, 64, 64))
    assert torch.equal(every, every[:, :1].expand(-1, 3, -1))
    masked = make("csn").eval().encode_all(torch.randn(2, 3, 64, 64))
    assert not torch.equal(masked[:, 0], masked[:, 1])


def test_asen_plus_plus_looks_at_crops() -> None:
    model = make("asen_plus_plus", patch=SHALLOW, patch_attention_dim=7, patch_hidden_dim=5, patch_size=32)
    model = model.eval()
    assert model.patch.head.get_parameter("image_proj.weight").shape == (7, 16)
    assert model.patch.head.get_parameter("gate.fc1.weight").shape == (5, 28)
    images, crops, ids = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 32, 32), torch.tensor([2, 0])
    out = model(images, ids)
    assert out.embedding.shape == (2, 28)
    assert torch.equal(out.box, reference.region_box(out.attention, torch.tensor([[64, 64]] * 2)))
    table, weights = model.attribute_embedding.weight, tensors(model.patch.head)
    expected = reference.asen_plus_plus_head(model.patch.trunk(crops), table, ids, weights)[0]
    torch.testing.assert_close(model.patch_embedding(crops, ids), expected, rtol=0, atol=1e-5)
    # s = beta cos(global) + (1 - beta) cos(local)
    cosines = [F.cosine_similarity(x[0], x[1], dim=0) for x in (out.region, out.patch)]
    torch.testing.assert_close(out.embedding[0] @ out.embedding[1], 0.6 * cosines[0] + 0.4 * cosines[1])


def test_groups_equal_separate_passes() -> None:
    joined, separate = (make("asen_v2").double() for _ in range(2))
    images, ids = torch.randn(6, 3, 32, 48, dtype=torch.double), torch.tensor([0, 1] * 3)
    ours = joined(images, ids, groups=3).region
    parts = [separate(*part).region for part in zip(images.chunk(3), ids.chunk(3), strict=True)]
    torch.testing.assert_close(ours, torch.cat(parts))
    torch.testing.assert_close(joined.state_dict(), separate.state_dict())
    assert joined.region.head.get_buffer("image_norm.running_mean").any()


def test_running_statistics_are_those_of_torch() -> None:
    """The convolution's bias is part of what the running mean follows."""
    model = randomize(make("asen_v2"))
    features, head = torch.randn(4, 16, 3, 5), model.region.head
    norm = nn.BatchNorm2d(12)
    own = {name: tensor.clone() for name, tensor in tensors(head).items()}
    norm.load_state_dict(
        {name: own[f"image_norm.{name}"] for name in tensors(norm) if "num" not in name}, False
    )
    projected = F.conv2d(features, own["image_proj.weight"], own["image_proj.bias"])
    norm(projected)
    native_head(model, features, torch.tensor([0]), batch_statistics=True)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(head.get_buffer(f"image_norm.{name}"), norm.get_buffer(name))


def test_frozen_statistics_stay() -> None:
    model = make("asen_v2")
    model.region.trunk.freeze_batch_norm = True
    before = copy.deepcopy(model.state_dict())
    trained = model.train()(torch.randn(2, 3, 32, 32), "hem").region
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert trained.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_autocast_errs_no_more_than_the_formulas(method: str) -> None:
    model = randomize(make(method))
    features, ids = torch.randn(3, 16, 3, 5), torch.tensor([[2, 0], [1, 1], [0, 2]])
    exact = plain_head(model, features, ids)[0]
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = (head(model, features.bfloat16(), ids)[0].float() for head in (native_head, plain_head))
    # bfloat16 has 8 bits: a floor of one in 2^8 of the largest.
    floor = exact.abs().max().item() / 256
    assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max() + floor


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_gives_the_same_bits(method: str, tmp_path: Path) -> None:
    options = {"patch": SHALLOW, "patch_size": 32} if method == "asen_plus_plus" else {}
    model = make(method, **options).eval()
    model.save(tmp_path / "model")
    loaded = placket.load(tmp_path / "model")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded.encode_all(images), model.encode_all(images))


class Encoder(nn.Module):
    """The embedding path as export takes it."""

    def __init__(self, model: AttributeNetwork) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode_all(images)


@pytest.mark.parametrize("method", METHODS)
def test_exports_with_a_dynamic_batch(method: str) -> None:
    options = {"patch": SHALLOW, "patch_size": 32} if method == "asen_plus_plus" else {}
    encoder = Encoder(make(method, **options).eval())
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(encoder, (torch.randn(2, 3, 32, 48),), dynamic_shapes=({0: batch},))
    program = program.run_decompositions()
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("attribute_head" in name for name in operators)
    images = torch.randn(5, 3, 32, 48)
    torch.testing.assert_close(program.module()(images), encoder(images))


# Training traces the backward pass too; only v2 computes something else in evaluation.
@pytest.mark.parametrize(
    ("method", "training"), [*((method, True) for method in METHODS), ("asen_v2", False)]
)
def test_compiles(method: str, training: bool) -> None:
    model = make(method).train(training)
    compiled = copy.deepcopy(model)
    images, ids = torch.randn(3, 3, 32, 48), torch.tensor([[0, 2], [1, 1], [2, 0]])

    def region(m: AttributeNetwork) -> Tensor:
        return m(images, ids).region

    torch._dynamo.reset()  # its limit of traces of one function is for all methods together
    # aot_eager: traced and decomposed in full, without a C++ compiler's minutes.
    ours = torch.compile(region, fullgraph=True, backend="aot_eager")(compiled)
    expected = region(model)
    torch.testing.assert_close(ours, expected)
    ours.sum().backward()
    expected.sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name)
    torch.testing.assert_close(compiled.state_dict(), model.state_dict())


class Downsample(nn.Module):
    """A trunk of the caller's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 8, 8)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images)


@pytest.mark.parametrize("method", METHODS)
def test_any_module_can_be_the_trunk(method: str) -> None:
    trunk = Downsample()
    model = make(method, trunk=trunk)  # type: ignore[arg-type]
    assert model.config.trunk == "module,channels=10"
    model(torch.randn(2, 3, 32, 32), "hem").region.square().sum().backward()
    assert trunk.conv.weight.grad.any()


def classify_image(model: AttributeNetwork, path: Path) -> list[Tensor]:
    batch = _C.prepare_image(np.asarray(Image.open(path)), None, _C.Preprocess(**model.preprocess))
    with torch.no_grad():
        return model.class_probabilities(batch.images, ["hem"])


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "photograph.png"
    pixels = np.random.default_rng(0).integers(0, 256, (70, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("method", ATTENDING)
def test_look_and_explain(method: str, photograph: Path) -> None:
    options = {"patch": SHALLOW, "patch_size": 32} if method == "asen_plus_plus" else {}
    model = make(method, preprocess={"size": 48}, **options).eval()
    looks = explain.look(model, photograph, ["hem", "sleeve"])
    assert [found.attribute for found in looks] == ["hem", "sleeve"]
    assert looks[0].attention.shape == (6, 6)
    assert looks[0].embedding.shape == (model.embedding_dim,)
    assert not np.array_equal(looks[0].attention, looks[1].attention)
    rows = explain.explain(model, photograph, photograph).rows()
    assert [row["cosine"] for row in rows] == pytest.approx([1, 1, 1])


def test_look_names_the_likeliest_value(photograph: Path) -> None:
    model = make("asen_v2", preprocess={"size": 48}).eval()
    (found,) = explain.look(model, photograph, ["hem"])
    assert (found.value, found.probability) == (None, None)
    model.learn_classes(0.1)
    assert explain.look(model, photograph, ["hem"])[0].value is None  # no centre has been learnt yet
    centres = torch.randn(model.region.centres.shape, generator=torch.Generator().manual_seed(1))
    model.region.centres.data.copy_(F.normalize(centres, dim=1))
    (found,) = explain.look(model, photograph, ["hem"])
    (expected,) = model.probabilities_of(torch.as_tensor(found.embedding)[None], "hem")
    assert found.value == SCHEMA["hem"].values[int(expected.argmax())]
    assert found.probability == pytest.approx(float(expected.max()))
    rows = explain.explain(model, photograph, photograph).rows()
    assert rows[SCHEMA.index("hem")]["value2"] == found.value


def test_look_names_the_likeliest_value_by_class_logits(photograph: Path) -> None:
    model = create_model("m3net", schema=SCHEMA, trunk=SHALLOW, preprocess={"size": 48}).eval()
    assert not model.predicts_by_embedding
    (found,) = explain.look(model, photograph, ["hem"])
    (expected,) = classify_image(model, photograph)
    assert found.value == SCHEMA["hem"].values[int(expected.argmax())]
    assert found.probability == pytest.approx(float(expected.max()), abs=1e-6)


def test_look_shows_all_of_a_squashed_picture(photograph: Path) -> None:
    model = make("asen_v2", preprocess={"size": 48, "fit": "squash"}).eval()
    (found,) = explain.look(model, photograph, ["hem"])
    assert found.window == (0, 0, 60, 70)
    sizes = torch.tensor([[70, 60]])
    expected = reference.region_box(torch.as_tensor(found.attention)[None], sizes, squashed=True)
    assert [list(found.box)] == expected.tolist()


@pytest.mark.parametrize("method", ["csn", "triplet"])
def test_look_refuses_what_has_no_attention(method: str, photograph: Path) -> None:
    message = f"look: model must attend to positions to be looked at, got {method}"
    for call in (lambda m: explain.look(m, photograph, ["hem"]), lambda m: explain.explain(m, photograph)):
        with pytest.raises(ValueError, match=message):
            call(make(method).eval())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: make("asen", embedding_dims=3),
            "options of asen must be among trunk, trunk_channels, attribute_dim, embedding_dim, hidden_dim",
        ),
        (lambda: make("csn", patch=SHALLOW), "create_model: options of csn must be among trunk,"),
        (
            lambda: torch.ops.placket.attribute_head(
                torch.randn(1, 16, 2, 2), None, torch.tensor([0]), [], "asen_v2,embedding_dim=16"
            ),
            "attribute_head: table must have shape [A, 512] for head 'asen_v2,embedding_dim=16', got []",
        ),
        (
            lambda: torch.ops.placket.attribute_head(
                torch.randn(1, 16, 2, 2), None, torch.tensor([0]), [], "asen"
            ),
            "attribute_head: weights must hold 12 tensors in the order of the spec, got 0",
        ),
        (
            lambda: torch.ops.placket.attribute_head(
                torch.randn(1, 16, 2, 2), None, torch.tensor([0]), [], "asen_plus_plus,atention_dim=3"
            ),
            "attention_dim, embedding_dim, hidden_dim, adapters_from, adapter_rank, got 'atention_dim'",
        ),
        (
            lambda: AsenPlusPlus(SCHEMA, trunk=SHALLOW, patch=SHALLOW, patch_size=0),
            "network: patch_size must be at least 1, got 0",
        ),
    ],
)
def test_errors_name_the_value(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
