from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from placket import losses, ops, reference

VALUES = (3, 4)  # of two attributes
MakeLoss = Callable[[], torch.nn.Module]
OF_PAIRS: dict[str, MakeLoss] = {
    "all triplets": losses.CosineTripletLoss,
    "active triplets": lambda: losses.CosineTripletLoss(0.5, mean_of="active"),
    "batch hard": losses.BatchHardTripletLoss,
    "soft margin": lambda: losses.BatchHardTripletLoss(margin=None),
    "semi-hard": losses.SemiHardTripletLoss,
    "semi-hard or none": lambda: losses.SemiHardTripletLoss(otherwise="none"),
    "outside": losses.MultiPositiveInfoNCE,
    "inside": lambda: losses.MultiPositiveInfoNCE(positives="inside"),
}
OF_CLASSES: dict[str, MakeLoss] = {
    "prototypes": lambda: losses.PrototypeCrossEntropy(VALUES, 5),
    "centres": lambda: losses.CentreLoss(VALUES, 5),
}
ALL = OF_PAIRS | OF_CLASSES


def batch(rows: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, values and attributes."""
    embeddings = torch.randn(rows, 5, dtype=dtype, requires_grad=True)
    return embeddings, torch.randint(-1, 3, (rows,)), torch.randint(0, 2, (rows,))


def one_hot(labels: Tensor, groups: Tensor) -> Tensor:
    """The same labels as sets of the classes of both attributes."""
    classes = torch.where(groups == 0, labels, labels + VALUES[0]).clamp_min(0)
    return F.one_hot(classes, sum(VALUES)) * (labels >= 0)[:, None]


def gradient(loss: Tensor, embeddings: Tensor) -> Tensor:
    return torch.autograd.grad(loss, embeddings, retain_graph=True)[0]


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_sets_of_one_class_equal_labels(make: MakeLoss) -> None:
    embeddings, labels, groups = batch(dtype=torch.float64)
    loss = make().eval()
    a, b = loss(embeddings, labels, groups), loss(embeddings, one_hot(labels, groups), groups)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(gradient(a, embeddings), gradient(b, embeddings))
    assert gradient(a, embeddings).abs().sum() > 0


@pytest.mark.parametrize("make", OF_PAIRS.values(), ids=OF_PAIRS)
def test_a_relation_equals_the_labels_it_is_of(make: MakeLoss) -> None:
    embeddings, labels, groups = batch()
    labels = labels.clamp_min(0)
    loss = make()
    relation = labels[:, None] == labels
    assert torch.equal(loss(embeddings, labels, groups), loss(embeddings, None, groups, relation=relation))
    one_way = relation.triu()
    assert torch.equal(loss(embeddings, relation=one_way), loss(embeddings, labels))


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_multi_label_rows_share_what_they_share(make: MakeLoss) -> None:
    """Rows with several classes are positives of all that share one, and unlabelled rows take no part."""
    embeddings, _, _ = batch(8)
    sets = (torch.rand(8, sum(VALUES)) < 0.3).int()
    sets[2] = 0
    loss = make().eval()
    groups = torch.zeros(8, dtype=torch.int64)
    sets[:, VALUES[0] :] = 0  # all of the first attribute
    whole = loss(embeddings, sets, groups)
    kept = [i for i in range(8) if i != 2]
    torch.testing.assert_close(whole, loss(embeddings[kept], sets[kept], groups[kept]))
    assert gradient(whole, embeddings)[2].abs().sum() == 0


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize(
    ("name", "labels"),
    [
        *((name, "none") for name in ALL),
        *((name, "all different") for name in OF_PAIRS),
        # Contrast there is among the positives alone too.
        *((name, "all equal") for name in OF_PAIRS if name not in ("outside", "inside")),
    ],
)
def test_nothing_to_compare_is_zero(name: str, labels: str, rows: int) -> None:
    embeddings = torch.randn(rows, 5, requires_grad=True)
    none = torch.full((rows,), -1)
    given = {"none": none, "all different": torch.arange(rows), "all equal": none + 1}[labels]
    found = ALL[name]()
    groups = torch.zeros(rows, dtype=torch.int64)
    for loss in (found(embeddings, given), found(embeddings, given, groups)):
        assert loss.item() == 0
        assert torch.equal(gradient(loss, embeddings), torch.zeros_like(embeddings))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_dtypes(make: MakeLoss, dtype: torch.dtype) -> None:
    embeddings, labels, groups = batch(dtype=dtype)
    loss = make().eval()
    found = loss(embeddings, labels, groups)
    wide = embeddings.detach().double()
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # The rows are those of low precision; what remains is float32's rounding.
    torch.testing.assert_close(found.double(), loss(wide, labels, groups).double(), rtol=1e-4, atol=1e-5)
    assert gradient(found, embeddings).dtype == dtype


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_autocast_runs_in_float32(make: MakeLoss) -> None:
    embeddings, labels, groups = batch()
    loss = make().eval()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss(embeddings, labels, groups), loss(embeddings, one_hot(labels, groups), groups)
    assert torch.equal(mixed[0], loss(embeddings, labels, groups))
    assert torch.equal(mixed[1], loss(embeddings, one_hot(labels, groups), groups))


@pytest.mark.parametrize("make", OF_PAIRS.values(), ids=OF_PAIRS)
def test_groups_keep_attributes_apart(make: MakeLoss) -> None:
    embeddings, labels, groups = batch(30)
    global_labels = torch.where(labels >= 0, labels + 3 * groups, -1)
    loss = make()
    assert torch.equal(loss(embeddings, labels, groups), loss(embeddings, global_labels, groups))
    assert loss(embeddings, labels, groups) != loss(embeddings, global_labels)


def hinges(embeddings: Tensor, labels: Tensor, groups: Tensor, margin: float) -> list[Tensor]:
    """Of all triplets, one by one."""
    z = F.normalize(embeddings, dim=1)
    positives, negatives = reference.label_relation(labels, groups)
    rows = range(len(z))
    return [
        (margin - z[a] @ z[p] + z[a] @ z[n]).clamp_min(0)
        for a, p, n in itertools.product(rows, rows, rows)
        if positives[a, p] and negatives[a, n]
    ]


@pytest.mark.parametrize("mean_of", ["all", "active"])
@pytest.mark.parametrize("margin", [0.2, 1.5])
def test_cosine_triplet_loss_of_all_triplets(mean_of: str, margin: float) -> None:
    embeddings, labels, groups = batch(dtype=torch.float64)
    terms = torch.stack(hinges(embeddings, labels, groups, margin))
    expected = terms.sum() / (len(terms) if mean_of == "all" else (terms > 0).sum())
    found = losses.CosineTripletLoss(margin, mean_of)(embeddings, labels, groups)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(found, embeddings), gradient(expected, embeddings))


def test_cosine_triplet_loss_of_given_triplets() -> None:
    embeddings, _, _ = batch()
    roles = (torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([4, 0]))
    expected = ops.cosine_triplet(*(embeddings[rows] for rows in roles), 0.2).mean()
    assert torch.equal(losses.CosineTripletLoss()(embeddings, triplets=roles), expected)
    none = tuple(torch.empty(0, dtype=torch.int64) for _ in range(3))
    assert losses.CosineTripletLoss()(embeddings, triplets=none) == 0


@pytest.mark.parametrize(("margin", "semi_hard"), [(0.2, False), (None, False), (0.2, True)])
def test_triplet_losses_of_mined_pairs(margin: float | None, semi_hard: bool) -> None:
    embeddings, labels, groups = batch(40, torch.float64)
    z = F.normalize(embeddings, dim=1)
    positive, negative, _, _ = reference.batch_hard(embeddings, labels, groups, semi_hard)
    terms = []
    for a, (p, n) in enumerate(zip(positive.tolist(), negative.tolist(), strict=True)):
        if p >= 0 and n >= 0:
            excess = z[a] @ z[n] - z[a] @ z[p]
            terms.append(F.softplus(excess) if margin is None else (margin + excess).clamp_min(0))
    loss = losses.SemiHardTripletLoss(0.2) if semi_hard else losses.BatchHardTripletLoss(margin)
    found, expected = loss(embeddings, labels, groups), torch.stack(terms).mean()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient(found, embeddings), gradient(expected, embeddings))


def test_semi_hard_or_none_leaves_rows_out() -> None:
    angles = torch.tensor([0.0, 40.0, 20.0, 90.0]).deg2rad()
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    labels = torch.tensor([0, 0, 1, 2])
    cosine = rows @ rows.T
    # Row 0 has one beyond 40 degrees, at 90; row 1 has one at 50.
    expected = (0.2 - cosine[0, 1] + torch.stack([cosine[0, 3], cosine[1, 3]])).clamp_min(0).mean()
    torch.testing.assert_close(losses.SemiHardTripletLoss()(rows, labels), expected)
    rows[3] = rows[2]  # now none has any
    assert losses.SemiHardTripletLoss(otherwise="none")(rows, labels) == 0
    assert losses.SemiHardTripletLoss()(rows, labels) > 0


def test_against_pytorch_metric_learning() -> None:
    """Their batch-hard triplets and their supervised contrastive loss."""
    peers = pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.losses import SupConLoss, TripletMarginLoss
    from pytorch_metric_learning.miners import BatchHardMiner
    from pytorch_metric_learning.reducers import MeanReducer

    assert peers.__version__
    embeddings = torch.randn(24, 16, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(24) % 6
    mined = BatchHardMiner(distance=CosineSimilarity())(embeddings, labels)
    triplet = TripletMarginLoss(0.2, distance=CosineSimilarity(), reducer=MeanReducer())
    found = losses.BatchHardTripletLoss(0.2)(embeddings, labels)
    torch.testing.assert_close(found, triplet(embeddings, labels, mined))
    expected = SupConLoss(temperature=0.1)(embeddings, labels)
    torch.testing.assert_close(losses.MultiPositiveInfoNCE(0.1)(embeddings, labels), expected)


def test_prototype_cross_entropy_with_and_without_groups() -> None:
    embeddings, labels, groups = batch()
    loss = losses.PrototypeCrossEntropy(VALUES, 5)
    classes = torch.where(labels >= 0, torch.where(groups == 0, labels, labels + VALUES[0]), -1)
    assert torch.equal(loss(embeddings, labels, groups), loss(embeddings, classes))
    terms = []
    for row, label, group in zip(embeddings, labels.tolist(), groups.tolist(), strict=True):
        if label >= 0:
            own = loss.centres[: VALUES[0]] if group == 0 else loss.centres[VALUES[0] :]
            terms.append(F.cross_entropy(16 * F.cosine_similarity(row, own), torch.tensor(label)))
    torch.testing.assert_close(loss(embeddings, labels, groups), torch.stack(terms).mean())


@pytest.mark.parametrize("make", OF_CLASSES.values(), ids=OF_CLASSES)
def test_a_value_without_images_and_a_class_never_seen(make: MakeLoss) -> None:
    """Value 2 of attribute 1 loses its last image; value 3 never had one."""
    loss = make()
    optimizer = torch.optim.SGD(loss.parameters(), 0.1) if list(loss.parameters()) else None
    before = loss.centres.detach().clone()
    for values in ([0, 1, 2, 2], [0, 1, 1, 0]):
        seen = loss.centres.detach().clone()
        embeddings = torch.randn(4, 5, requires_grad=True)
        found = loss(embeddings, torch.tensor(values), torch.ones(4, dtype=torch.int64))
        found.backward()
        assert found.isfinite()
        assert embeddings.grad is not None
        assert embeddings.grad.isfinite().all()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
    assert loss.centres.isfinite().all()
    assert torch.equal(loss.centres[:3], before[:3])  # the other attribute's
    if optimizer is None:
        assert torch.equal(loss.centres[6], before[6])
        assert torch.equal(loss.centres[5], seen[5])


@pytest.mark.parametrize("as_sets", [False, True])
def test_centre_loss_moves_its_centres_as_published(as_sets: bool) -> None:
    embeddings, labels, groups = batch(dtype=torch.float64)
    loss = losses.CentreLoss(VALUES, 5, rate=0.3)
    before = loss.centres.clone()
    found = loss(embeddings, one_hot(labels, groups) if as_sets else labels, groups)
    terms, expected = [], before.clone().double()
    for c in range(sum(VALUES)):
        attribute, value = (0, c) if c < VALUES[0] else (1, c - VALUES[0])
        rows = embeddings[(groups == attribute) & (labels == value)]
        terms.append((rows - before[c]).square().sum(1) / 2)
        expected[c] += 0.3 * (rows.detach() - before[c]).sum(0) / (1 + len(rows))
    torch.testing.assert_close(found, torch.cat(terms).mean())
    torch.testing.assert_close(loss.centres.double(), expected, rtol=1e-5, atol=1e-6)
    moved = loss.centres.clone()
    loss.eval()(embeddings, labels, groups)
    assert torch.equal(loss.centres, moved)


def test_centre_loss_of_several_classes() -> None:
    loss = losses.CentreLoss(3, 5).eval()
    row = torch.randn(1, 5)
    expected = ((row - loss.centres[[0, 2]]).square().sum(1) / 2).mean()
    torch.testing.assert_close(loss(row, torch.tensor([[1, 0, 1]])), expected)


def test_centres_are_saved_and_the_rest_is_not() -> None:
    for make in OF_CLASSES.values():
        assert list(make().state_dict()) == ["centres"]


def test_label_sets() -> None:
    sets = torch.zeros(3, 130, dtype=torch.bool)
    sets[0, [0, 63, 64]] = sets[1, 129] = True
    packed = losses.label_sets(sets)
    assert packed.tolist() == [[1 - 2**63, 1, 0], [0, 0, 2], [0, 0, 0]]
    assert losses.label_sets(torch.zeros(2, 0)).shape == (2, 0)


def test_compiles() -> None:
    embeddings, labels, groups = batch()
    for make in (losses.BatchHardTripletLoss, OF_CLASSES["prototypes"]):
        loss = make()
        compiled = torch.compile(loss, fullgraph=True)
        torch.testing.assert_close(compiled(embeddings, labels, groups), loss(embeddings, labels, groups))


def test_errors() -> None:
    embeddings, labels, groups = batch()
    with pytest.raises(
        ValueError, match="BatchHardTripletLoss: either labels or relation must be given, got neither"
    ):
        losses.BatchHardTripletLoss()(embeddings)
    with pytest.raises(ValueError, match="must be given, got both"):
        losses.MultiPositiveInfoNCE()(embeddings, labels, relation=torch.ones(12, 12).bool())
    with pytest.raises(TypeError, match=r"relation must be bool, got torch\.float32"):
        losses.SemiHardTripletLoss()(embeddings, relation=torch.ones(12, 12))
    with pytest.raises(ValueError, match="positives must be one of outside, inside, got 'in'"):
        losses.MultiPositiveInfoNCE(positives="in")  # type: ignore[arg-type]
    loss = losses.PrototypeCrossEntropy(VALUES, 5)
    with pytest.raises(
        ValueError, match="labels must be below the number of their attribute's values, got 3"
    ):
        loss(embeddings[:2], torch.tensor([3, 0]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=r"labels must be below .* got 7"):
        loss(embeddings[:2], torch.tensor([7, 0]))
    with pytest.raises(ValueError, match=r"labels must have shape \[B, 7\] for sets, got \[12, 3\]"):
        loss(embeddings, torch.ones(12, 3), groups)
    with pytest.raises(ValueError, match="groups must say which of 2 attributes"):
        loss(embeddings, torch.ones(12, 7))
