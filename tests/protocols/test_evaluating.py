"""placket.evaluate: what each protocol takes from a data set, and what it refuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import plain_rankings as plain
import pytest
import torch
import torch.nn.functional as F

import placket
from placket.agreement import Labelled, Ranked, centre_probabilities, class_agreement, class_means
from placket.cli import main
from placket.data import Dataset
from placket.evaluate import classify_split, embed_pairs
from placket.nn import AttributeNetwork, Modc, Rpf
from placket.protocols import Result, asfr_multilabel, embed_from, joint_embed, split_joint
from placket.rerank import k_reciprocal, query_expansion

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("train", "data")]

from product_model import Products
from small_layouts import draw, write
from small_training import SIZE, TRUNK, draw_all


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("evaluating") / "drawn"
    root.mkdir()
    draw_all(root)
    for stem in ("filenames", "label", "query", "candidate"):  # a test split of the same images
        (root / f"{stem}_test.txt").write_text((root / f"{stem}_valid.txt").read_text().replace("img/", "t/"))
    (root / "t").symlink_to(root / "img")
    (root / "query_train.txt").unlink()
    return placket.data.open(root)


@pytest.fixture(scope="module")
def model(drawn: Dataset) -> Rpf:
    torch.manual_seed(0)
    return placket.create_model(
        "rpf",
        schema=drawn.schema,
        trunk=TRUNK,
        patch=TRUNK,
        attribute_dim=16,
        patch_size=32,
        preprocess={"size": SIZE},
    )


@pytest.fixture(scope="module")
def consumer_to_shop(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    partition, boxes = [], {}
    for split, products in (("train", range(2)), ("val", range(2, 7)), ("test", range(7, 13))):
        for product in products:
            for photo in range(2):
                names = [f"img/{product}/{kind}_{photo}.jpg" for kind in ("consumer", "shop")]
                partition.append(f"{names[0]} {names[1]} id_{product} {split}")
                for source, name in zip((2, 1), names, strict=True):
                    boxes[name] = f"{name} 1 {source} 0 0 30 40"
    files = {
        "Eval/list_eval_partition.txt": ["consumer_image shop_image item status", *partition],
        "Anno/list_bbox_consumer2shop.txt": ["image clothes source x1 y1 x2 y2", *boxes.values()],
    }
    texts = {name: "\n".join([str(len(lines) - 1), *lines]) + "\n" for name, lines in files.items()}
    data = placket.data.open(write(tmp_path_factory.mktemp("c2s"), texts))
    for split in data.splits:
        draw(data.split(split))
    return data


@pytest.fixture(scope="module")
def oml(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve photos, of which some ask, some answer and some do both."""
    lines = ["label,path,split,is_query,is_gallery,sequence,category", "9,a.jpg,train,,,,"]
    for i in range(12):
        lines.append(f"{i % 4},img/{i}.jpg,validation,{i < 7},{i > 3},{i // 5},{'coat' if i % 2 else 'hat'}")
    data = placket.data.open(write(tmp_path_factory.mktemp("oml"), {"df.csv": "\n".join(lines) + "\n"}))
    draw(data.split("valid"))
    return data


def ranks(queries: list[int], gallery: list[int], scores: torch.Tensor, same, met) -> list[int]:
    """The rank of each query's first answer; images are rows and columns of ``scores``."""
    found = []
    for q in queries:
        kept = [c for c in gallery if met(q, c)]
        ranked = plain.ranked([scores[q, c].item() for c in kept], [same(q, c) for c in kept])
        found.append(plain.rank_of_first(ranked))
    return found


@pytest.mark.parametrize("gallery", ["all-shop", "per-subset"])
def test_consumer_to_shop(gallery, model: Rpf, consumer_to_shop: Dataset):
    weights = {"colour": 2.0, "place": 0.5}
    result = placket.evaluate(
        model, consumer_to_shop, protocol="c2s-topk/v1", attributes=weights, gallery=gallery
    )
    parts = [consumer_to_shop.split(name) for name in ("valid", "test")]
    embeddings = torch.cat([placket.embed_split(model, part) for part in parts])
    scores = 2 * embeddings[:, 0] @ embeddings[:, 0].T + 0.5 * embeddings[:, 1] @ embeddings[:, 1].T
    products = np.concatenate([part.identities for part in parts])
    offset = len(parts[0])
    shops = [*parts[0].gallery_images, *(parts[1].gallery_images + offset)]
    if gallery == "per-subset":
        shops = [image for image in shops if image >= offset]
    firsts = ranks(
        (parts[1].query_images + offset).tolist(),
        shops,
        scores,
        lambda q, c: products[q] == products[c],
        lambda q, c: True,
    )
    assert result.metrics["top-10 accuracy"].values["all"].tolist() == [first <= 10 for first in firsts]
    assert result.candidates == {"all": 22 if gallery == "all-shop" else 12}
    assert (result.gallery, result.similarity) == (gallery, "mean cosine in colour (2), place (0.5)")
    again = placket.evaluate(
        model, consumer_to_shop, protocol="c2s-topk/v1", attributes=["colour"], gallery=gallery
    )
    assert again.lists == result.lists
    assert again.similarity == "mean cosine in colour (1)"


@pytest.mark.parametrize("rerank", [None, "k-reciprocal", "query-expansion"])
def test_a_model_of_products(rerank, consumer_to_shop: Dataset, drawn: Dataset):
    own = Products()
    part = consumer_to_shop.split("test")
    result = placket.evaluate(
        own, consumer_to_shop, protocol="c2s-topk/v1", gallery="per-subset", rerank=rerank, flip=True
    )
    rows = placket.embed_split(own, part, flip=True)[:, 0]
    asked, offered = (torch.from_numpy(images) for images in (part.query_images, part.gallery_images))
    if rerank == "k-reciprocal":
        scores = k_reciprocal(rows[asked], rows[offered])
    elif rerank == "query-expansion":
        scores = query_expansion(rows[asked], rows[offered]) @ rows[offered].T
    else:
        scores = rows[asked] @ rows[offered].T
    best = scores.argmax(1)
    hits = part.identities[part.gallery_images[best.numpy()]] == part.identities[part.query_images]
    assert result.metrics["top-1 accuracy"].values["all"].tolist() == hits.tolist()
    said = {
        None: "",
        "k-reciprocal": ", re-ranked by k-reciprocal neighbours (k1 20, k2 6, weight 0.3)",
        "query-expansion": ", re-ranked by query expansion (mean with the 5 nearest)",
    }
    assert result.similarity == "mean cosine in product (1)" + said[rerank]
    with pytest.raises(ValueError, match="needs a model with a space for each attribute, got products with"):
        placket.evaluate(own, drawn, "valid")


def test_command(model: Rpf, consumer_to_shop: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model.save(tmp_path / "model")
    weights = {"colour": 2.0, "place": 1.0}
    expected = placket.evaluate(
        model, consumer_to_shop, "valid", "c2s-topk/v1", attributes=weights, gallery="per-subset"
    )
    arguments = ["--protocol", "c2s-topk/v1", "--attribute", "colour=2", "--attribute", "place"]
    more = ["--gallery", "per-subset", "--by-category", "--allow-missing", "--json", str(tmp_path / "a.json")]
    place = ["evaluate", str(tmp_path / "model"), str(consumer_to_shop.root), "--split", "valid"]
    assert main([*place, *arguments, *more]) == 0
    found = Result.load(tmp_path / "a.json")
    # Every photo is of one clothes type, so that its category leaves nothing out.
    assert found.metrics["mAP"].overall == expected.metrics["mAP"].overall
    assert list(found.queries) == ["upper-body"]
    assert (found.gallery, found.similarity) == ("per-subset", "mean cosine in colour (2), place (1)")
    assert found.table() + "\n" == capsys.readouterr().out
    reranked = ["--rerank", "k-reciprocal", "--json", str(tmp_path / "b.json")]
    assert main([*place, *arguments, "--gallery", "per-subset", "--by-category", *reranked]) == 0
    assert "re-ranked by k-reciprocal neighbours" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert "B - A" in capsys.readouterr().out
    assert main([*place, "--rerank", "k-reciprocal"]) == 1
    assert "rerank must be None with asfr-map-all/v1, got 'k-reciprocal'" in capsys.readouterr().err
    assert main([*place, "--protocol", "recognition/v1"]) == 1
    assert "model must score attribute values for recognition/v1" in capsys.readouterr().err


@pytest.mark.parametrize("by_category", [False, True])
def test_photos_of_a_sequence_are_no_answers(by_category: bool, model: Rpf, oml: Dataset):
    result = placket.evaluate(
        model, oml, "valid", protocol="inshop-recall/v1", by_category=by_category or None
    )
    part = oml.split("valid")
    embeddings = placket.embed_split(model, part)
    scores = torch.einsum("iad,jad->ij", embeddings, embeddings)
    firsts = ranks(
        part.query_images.tolist(),
        part.gallery_images.tolist(),
        scores,
        lambda q, c: part.identities[q] == part.identities[c],
        lambda q, c: part.sequences[q] != part.sequences[c] and (not by_category or (q - c) % 2 == 0),
    )
    assert sum(first == 0 for first in firsts) == result.without_relevant
    groups = {"coat": 1, "hat": 0} if by_category else {"all": None}
    assert list(result.queries) == list(groups)
    for name, odd in groups.items():
        own = [f for q, f in zip(part.query_images, firsts, strict=True) if odd is None or q % 2 == odd]
        assert result.metrics["Recall@1"].values[name].tolist() == [first == 1 for first in own]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Articles of a catalogue, of products with one to three; each of another colour, as H&M's are."""
    lines = ["article,product,colour,part"]
    for part in ("train", "test"):
        for product, articles in enumerate((1, 2, 3, 2, 1, 3)):
            lines += [f"{part}{product}{i},{part}{product},c{i},{part}" for i in range(articles)]
    layout = "table: set.csv\nimage: img/{article}.jpg\nattributes: {colour: colour}\n"
    layout += "split: part\nidentity: product\n"
    root = write(tmp_path_factory.mktemp("table"), {"set.csv": "\n".join(lines) + "\n", "set.yaml": layout})
    data = placket.data.open(root / "set.yaml")
    draw(data.split("test"))
    return data


def test_articles_find_their_product_in_other_colours(model: Rpf, table: Dataset):
    result = placket.evaluate(model, table, protocol="inshop-recall/v1")
    part = table.split("test")
    embeddings = placket.embed_split(model, part)
    scores = torch.einsum("iad,jad->ij", embeddings, embeddings)
    firsts = ranks(
        part.query_images.tolist(),
        [*range(12)],
        scores,
        lambda q, c: part.identities[q] == part.identities[c],
        lambda q, c: q != c,
    )
    assert result.queries == {"all": 10}
    assert result.candidates == {"all": 12}
    assert result.without_relevant == 0
    assert all(firsts)
    assert result.metrics["Recall@1"].values["all"].tolist() == [first == 1 for first in firsts]
    with pytest.raises(ValueError, match="c2s-topk/v1 needs photos of consumers and of shops"):
        placket.evaluate(model, table, protocol="c2s-topk/v1")


def test_multilabel(model: Rpf, drawn: Dataset):
    result = placket.evaluate(model, drawn, "valid", "asfr-multilabel/v1")
    part = drawn.split("valid")
    rows = [(i, a, v) for i in range(len(part)) for a, v in part.labels[i]]
    embeddings = placket.embed_split(model, part)
    assert result.queries == {"colour": 18, "place": 18}
    assert result.candidates == {"colour": 17, "place": 17}
    assert result == asfr_multilabel(rows, embed_from(embeddings), drawn.schema)


@pytest.mark.parametrize("tune", ["overall", "per attribute"])
def test_region_weight_is_chosen_on_valid(tune, model: Rpf, drawn: Dataset):
    result = placket.evaluate(model, drawn, "test", tune_region=tune)
    said = result.similarity
    assert re.fullmatch(r"cosine with region weight [\w., ]*\d[\w., ]*, chosen on valid", said)
    assert (" for colour, " in said) == (tune == "per attribute")
    # The test split's images are the valid split's: nothing scores higher than the weight chosen there.
    part = drawn.split("test")
    blocks = [embed_from(block) for block in split_joint(placket.embed_split(model, part))]
    for weight in (0.0, 0.3, 1.0):
        other = placket.protocols.asfr_map_all(
            part.queries, part.candidates, joint_embed(*blocks, weight, drawn.schema), drawn.schema
        )
        assert result.overall >= other.overall - 1e-9
        if weight == 0.3:  # the model's own
            assert other.overall == pytest.approx(placket.evaluate(model, drawn, "test").overall, abs=1e-9)
    with pytest.raises(ValueError, match="tune_region must be None with asfr-multilabel/v1, got 'overall'"):
        placket.evaluate(model, drawn, "valid", "asfr-multilabel/v1", tune_region="overall")


def by_hand(model: AttributeNetwork, data: Dataset, flip: bool, **options: object) -> dict[str, Ranked]:
    """The rankings from embeddings of whole splits."""
    train = data.split("train")
    labels = [(i, a, v) for i in range(len(train)) for a, v in train.labels[i]]
    z = placket.embed_split(model, train)  # also with flips
    means = class_means(labels, embed_from(z), data.schema)
    splits = []
    for part in (data.split("valid"), data.split("test")):
        z = placket.embed_split(model, part, flip=flip)
        found = centre_probabilities(embed_from(z), means)
        if isinstance(model, Modc):
            centres = [model.centres(name) for name in data.schema.names]
            found |= centre_probabilities(embed_from(z), centres, name="centres of the training")
        if model.has_classes:
            classes = classify_split(model, part, flip=flip)
            found["class logits"] = lambda images, attribute, classes=classes: classes[attribute][images]
        splits.append(Labelled(part.queries, part.candidates, embed_from(z), found))
    return class_agreement(*splits, data.schema, per_attribute=True, **options)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("name", ["rpf", "modc", "m3net"])
def test_ranking_by_class_agreement(name: str, flip: bool, drawn: Dataset):
    torch.manual_seed(0)
    options = {"patch": None} if name == "rpf" else {}
    own = placket.create_model(
        name, schema=drawn.schema, trunk=TRUNK, attribute_dim=16, preprocess={"size": SIZE}, **options
    )
    if name == "modc":
        own.class_centres.copy_(F.normalize(torch.randn(own.class_centres.shape), dim=1))
    expected = by_hand(own, drawn, flip)
    for ranking in ("embedding", "agreement", "both"):
        assert placket.evaluate(own, drawn, ranking=ranking, flip=flip) == expected[ranking].test
    given = placket.evaluate(own, drawn, ranking="both", class_weight=0.3, flip=flip)
    assert given == by_hand(own, drawn, flip, weights=[0.3])["both"].test
    assert "colour: 0.3 " in given.similarity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranking": "cosine"}, "ranking must be one of embedding, agreement, both, got 'cosine'"),
        (
            {"ranking": "both", "protocol": "asfr-multilabel/v1"},
            "ranking must be 'embedding' with asfr-multilabel/v1, got 'both'",
        ),
        (
            {"ranking": "both", "tune_region": "overall"},
            "tune_region must be None with ranking 'both', got 'overall'",
        ),
        ({"class_weight": 0.5}, "class_weight must be None but with ranking 'both' .*, got 0.5"),
        ({"class_weight": 0.5, "ranking": "agreement"}, "class_weight must be None .* ranking 'agreement'"),
        ({"class_weight": -1.0, "ranking": "both"}, "class_weight must be at least 0, got -1.0"),
    ],
)
def test_ranking_errors(options: dict[str, object], message: str, model: Rpf, drawn: Dataset):
    with pytest.raises(ValueError, match=f"evaluate: {message}"):
        placket.evaluate(model, drawn, **options)


def test_ranking_by_class_agreement_leaves_out_missing_images(drawn: Dataset, tmp_path: Path):
    """Also of the training split, of which the class means are."""
    model = placket.create_model(
        "m3net", schema=drawn.schema, trunk=TRUNK, attribute_dim=16, preprocess={"size": SIZE}
    )
    root = tmp_path / drawn.root.name
    copy = placket.data.open(write(root, {
        path.relative_to(drawn.root).as_posix(): path.read_text() for path in drawn.root.glob("*.*")
    }))  # fmt: skip
    (root / "img").mkdir()
    (root / "t").symlink_to(root / "img")
    gone = {("train", 3), ("valid", 0), ("valid", 8)}
    for name in ("train", "valid"):
        part = drawn.split(name)
        for image in range(len(part)):
            if (name, image) not in gone:
                (root / part.filenames[image]).symlink_to(part.paths[image])
    result = placket.evaluate(model, copy, ranking="both", allow_missing=True)
    assert (result.protocol, result.missing) == ("asfr-map-all/v1 subset", 2)
    with pytest.raises(RuntimeError, match="train003"):
        placket.evaluate(model, copy, ranking="both")


def test_missing_images_are_counted_and_named(model: Rpf, drawn: Dataset, tmp_path: Path):
    copy = placket.data.open(write(tmp_path / drawn.root.name, {
        path.relative_to(drawn.root).as_posix(): path.read_text()
        for path in drawn.root.glob("*.*")
    }))  # fmt: skip
    (tmp_path / drawn.root.name / "img").mkdir()
    part = drawn.split("valid")
    gone = {0, 7, 8}  # one asks, two answer
    for image in set(range(18)) - gone:
        (tmp_path / drawn.root.name / part.filenames[image]).symlink_to(part.paths[image])
    with pytest.raises(RuntimeError, match="valid000"):
        placket.evaluate(model, copy, "valid")
    result = placket.evaluate(model, copy, "valid", allow_missing=True)
    assert (result.protocol, result.missing) == ("asfr-map-all/v1 subset", 3)
    assert result.queries == {"colour": 5, "place": 5}
    assert result.candidates == {"colour": 10, "place": 10}
    assert "3 images missing" in result.table()
    labels = placket.evaluate(model, copy, "valid", "asfr-multilabel/v1", allow_missing=True)
    assert (labels.protocol, labels.missing) == ("asfr-multilabel/v1 subset", 3)
    whole = placket.evaluate(model, drawn, "valid", allow_missing=True)
    assert whole == placket.evaluate(model, drawn, "valid")


def test_missing_photos_of_products(model: Rpf, oml: Dataset, tmp_path: Path):
    copy = placket.data.open(write(tmp_path, {"df.csv": (oml.root / "df.csv").read_text()}))
    (tmp_path / "img").mkdir()
    for image in set(range(12)) - {1, 5, 9}:
        (tmp_path / "img" / f"{image}.jpg").symlink_to(oml.root / "img" / f"{image}.jpg")
    result = placket.evaluate(model, copy, "valid", "inshop-recall/v1", allow_missing=True)
    assert (result.protocol, result.missing) == ("inshop-recall/v1 subset", 3)  # 5 asks and answers
    assert (result.queries, result.candidates) == ({"all": 5}, {"all": 6})


def test_street2shop_is_sought_within_the_category(model: Rpf, tmp_path: Path):
    box = {"left": 2, "top": 1, "width": 20, "height": 30}
    files = {}
    for c, category in enumerate(("dresses", "tops")):
        first = 10 * c
        pairs = [{"photo": first + i, "product": i, "bbox": box} for i in range(3)]
        shop = [{"photo": first + 5 + i, "product": i} for i in range(4)]
        files[f"meta/json/test_pairs_{category}.json"] = json.dumps(pairs)
        files[f"meta/json/retrieval_{category}.json"] = json.dumps(shop)
    data = placket.data.open(write(tmp_path, files))
    draw(data.split("test"))
    result = placket.evaluate(model, data, "test", "c2s-topk/v1")
    assert (result.queries, result.candidates) == ({"dresses": 3, "tops": 3}, {"dresses": 4, "tops": 4})
    whole = placket.evaluate(model, data, "test", "c2s-topk/v1", by_category=False)
    assert (whole.queries, whole.candidates) == ({"all": 6}, {"all": 8})
    assert whole.lists != result.lists


def test_module_trunks_embed_only_what_is_asked(drawn: Dataset, tmp_path: Path):
    trunk = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Conv2d(3, 12, 1))
    model = placket.create_model(
        "rpf", schema=drawn.schema, trunk=trunk, patch=None, attribute_dim=8, preprocess={"size": SIZE}
    )
    result: Result = placket.evaluate(model, drawn, "valid", "asfr-multilabel/v1")
    part = drawn.split("valid")
    rows = [(i, a, v) for i in range(len(part)) for a, v in part.labels[i]]
    assert result == asfr_multilabel(rows, embed_from(placket.embed_split(model, part)), drawn.schema)
    placket.data.pack(drawn, tmp_path / "drawn.store")
    packed = placket.data.open(tmp_path / "drawn.store")
    assert placket.evaluate(model, packed, "valid", "asfr-multilabel/v1", allow_missing=True) == result
    lists = packed.split("valid").candidates[3:9, :2]  # not from the first image on
    found = embed_pairs(model, packed.split("valid"), *lists.T)
    assert torch.equal(found, placket.embed_split(model, part)[tuple(torch.from_numpy(lists.T.copy()))])


@pytest.mark.parametrize(
    ("which", "options", "message"),
    [
        ("drawn", {"protocol": "asfr"}, "protocol must be one of asfr-map-all/v1, .*, got 'asfr'"),
        ("drawn", {"protocol": "c2s-topk/v1"}, "c2s-topk/v1 needs products and lists of query and gallery"),
        (
            "drawn",
            {"attributes": ["colour"]},
            r"attributes must be None with asfr-map-all/v1, got \['colour'\]",
        ),
        (
            "drawn",
            {"protocol": "recognition/v1"},
            "model must score attribute values for recognition/v1, as raf_clip and m3net do, got rpf",
        ),
        (
            "drawn",
            {"protocol": "fashioniq-val/v1"},
            "model must embed image and text together for fashioniq-val/v1, as raf_clip does, got rpf",
        ),
        ("drawn", {"split": "train"}, "split must have query and candidate lists, got 'train' of"),
        ("oml", {"protocol": "c2s-topk/v1"}, "needs photos of consumers and of shops.*use inshop-recall/v1"),
        ("oml", {}, "attribute 'category' must be one of colour, place with the same values, got "),
        ("oml", {"protocol": "inshop-recall/v1", "attributes": []}, "attributes must name at least one, got"),
        (
            "oml",
            {"protocol": "inshop-recall/v1", "attributes": ["color"]},
            "rpf: space must be one of colour, place, got 'color'; closest is 'colour'",
        ),
        ("consumer_to_shop", {"protocol": "inshop-recall/v1"}, "needs photos of one kind.*use c2s-topk/v1"),
    ],
)
def test_what_a_data_set_cannot_serve(
    which: str, options: dict[str, object], message: str, model: Rpf, request: pytest.FixtureRequest
):
    data = request.getfixturevalue(which)
    with pytest.raises(ValueError, match=message):
        placket.evaluate(model, data, **{"split": "valid", **options})
