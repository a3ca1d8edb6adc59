"""From images to an index, in blocks, and on after an interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import placket
from placket.data import Split, Texts
from placket.evaluate import embed_pairs
from placket.index import AttributeIndex, add_images, build, load_model, search_image
from placket.index.model import keep_model, replace_model, verify_model
from placket.nn import Rpf

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from small_training import TRUNK, draw_all


def small(data: placket.data.Dataset) -> Rpf:
    return placket.create_model("rpf", schema=data.schema, trunk=TRUNK, patch=TRUNK, patch_size=32).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> placket.data.Dataset:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("build")
    draw_all(root)
    return placket.data.open(root)


@pytest.fixture(scope="module")
def model(data: placket.data.Dataset) -> Rpf:
    torch.manual_seed(3)
    return small(data)


def whole(index: AttributeIndex) -> dict[object, object]:
    items = {id: index.get(id) for id in index.ids()}
    return {id: (i.metadata, {n: v.tolist() for n, v in i.vectors.items()}) for id, i in items.items()}


def test_blocks_make_the_same_index(data: placket.data.Dataset, model: Rpf, tmp_path: Path) -> None:
    split, seen = data.split("valid"), []
    with build(model, split, tmp_path / "one") as one:
        expected = whole(one)
    with build(model, split, tmp_path / "many", block=5, progress=lambda *done: seen.append(done)) as many:
        found = whole(many)
        assert many.verify() == []
    assert list(found) == list(expected) == [f"img/valid{i:03d}.jpg" for i in range(18)]
    for id, (metadata, vectors) in expected.items():
        assert found[id][0] == metadata
        for name, vector in vectors.items():
            np.testing.assert_allclose(found[id][1][name], vector, atol=1e-6)
    assert seen == [(5, 18), (10, 18), (15, 18), (18, 18)]
    # What stands in the index is what the model says of the file.
    embeddings = placket.embed_split(model, split)
    np.testing.assert_allclose(expected["img/valid007.jpg"][1]["place"], embeddings[7, 1], atol=1e-6)


def test_interrupted_build_goes_on(
    data: placket.data.Dataset, model: Rpf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = data.split("valid")

    def stop(done: int, count: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(model, split, tmp_path / "a", block=5, progress=stop)
    with AttributeIndex.load(tmp_path / "a", read_only=True) as index:
        assert len(index) == 10
    embedded = []

    def counted(model: Rpf, split: Split, images: np.ndarray, *rest: Any, **named: Any) -> torch.Tensor:
        embedded.extend(np.unique(images).tolist())
        return embed_pairs(model, split, images, *rest, **named)

    monkeypatch.setattr(sys.modules["placket.index.build"], "embed_pairs", counted)
    with build(model, split, tmp_path / "a", block=7) as index:
        assert list(index.ids()) == [f"img/valid{i:03d}.jpg" for i in range(18)]
    assert embedded == list(range(10, 18))


def test_metadata_of_a_data_set_with_everything(
    data: placket.data.Dataset, model: Rpf, tmp_path: Path
) -> None:
    split = dataclasses.replace(
        data.split("valid"),
        identities=np.arange(-1, 17),
        domains=np.arange(18) % 2,
        boxes=np.tile([4, 5, 40, 50], (18, 1)),
    )
    captions = Texts(["", *(f"garment {i}" for i in range(1, 18))])
    with build(model, split, tmp_path / "a", images=[0, 9], captions=captions) as index:
        first, other = (index.get(f"img/valid{i:03d}.jpg").metadata for i in (0, 9))
        found = search_image(index, split.paths[0], k=5, where="product = 8 and domain = 'consumer'")
    root = data.root.resolve()
    assert first == {
        "path": str(root / "img/valid000.jpg"),
        "labels": {"colour": ["red"], "place": ["left"]},
        "box": [4, 5, 40, 50],
        "domain": "shop",
    }
    assert {key: other[key] for key in ("product", "domain", "caption")} == {
        "product": 8,
        "domain": "consumer",
        "caption": "garment 9",
    }
    assert [hit.id for hit in found] == ["img/valid009.jpg"]


def test_image_that_is_listed_again_is_an_item_of_its_own(
    data: placket.data.Dataset, model: Rpf, tmp_path: Path
) -> None:
    split = data.split("valid")
    names = [split.filenames[i] for i in (0, 1, 0, 2, 0, 1)] + list(split.filenames[6:])
    boxes = np.tile([0, 0, 48, 56], (18, 1))
    boxes[2] = 0, 0, 30, 30
    shared = dataclasses.replace(split, filenames=Texts(names), boxes=boxes)
    with build(model, shared, tmp_path / "a", images=range(6), block=2) as index:
        expected = [names[0], names[1], f"{names[0]}#2", names[3], f"{names[0]}#3", f"{names[1]}#2"]
        assert list(index.ids()) == expected
        assert index.get(f"{names[0]}#2").metadata["box"] == [0, 0, 30, 30]
        assert add_images(index, shared, images=range(6), model=model) == 0


def test_search_by_photograph(data: placket.data.Dataset, model: Rpf, tmp_path: Path) -> None:
    split = data.split("valid")
    image = split.paths[4]
    with build(model, split, tmp_path / "a") as index:
        own = search_image(index, image, model=model)
        assert own == search_image(index, image)
        assert own[0].id == "img/valid004.jpg"
        assert own[0].score == pytest.approx(2, abs=1e-5)
        weighted = search_image(index, image, {"place": 0.5, 0: 2.0}, k=18)
        for hit in weighted:
            assert hit.score == pytest.approx(0.5 * hit.scores["place"] + 2 * hit.scores["colour"], abs=1e-6)
        part = search_image(index, image, ["place"], box=(0, 0, 24, 28), where="labels.colour has 'blue'")
        assert {hit.metadata["labels"]["colour"][0] for hit in part} == {"blue"}


def test_errors(data: placket.data.Dataset, model: Rpf, tmp_path: Path) -> None:
    split = data.split("valid")
    build(model, split, tmp_path / "a", images=[0, 1]).close()
    other = small(data)
    with pytest.raises(ValueError, match=r"build: model must be the one in .*a/model, .* got another"):
        build(other, split, tmp_path / "a")
    with pytest.raises(ValueError, match=r"build: storage must be 'float32' as in the index .*, got 'int8'"):
        build(model, split, tmp_path / "a", storage="int8")
    with pytest.raises(ValueError, match=r"build: engine must be 'flat' as in the index .*, got 'faiss'"):
        build(model, split, tmp_path / "a", engine="faiss")
    # The errors have let go of it.
    with AttributeIndex.load(tmp_path / "a") as index:
        other.preprocess = {**other.preprocess, "size": 48}
        for call in (search_image, lambda *given, model: add_images(index, split, model=model)):
            with pytest.raises(ValueError, match=r"model must have the configuration in .*, got another"):
                call(index, split.paths[0], model=other)
        moved = dataclasses.replace(split, root=tmp_path / "elsewhere")
        with pytest.raises(
            ValueError, match=r"ids must be of one image each, got 'img/valid000.jpg' for .*else"
        ):
            add_images(index, moved)
        assert add_images(index, split, images=[1, 2, 3]) == 2
        (tmp_path / "a" / "model" / "SHA256SUMS").unlink()
        with pytest.raises(FileNotFoundError, match=r"must hold the model that it was built with, got no"):
            search_image(index, split.paths[0])


def test_damaged_model_is_found_and_refused(data: placket.data.Dataset, model: Rpf, tmp_path: Path) -> None:
    with build(model, data.split("valid"), tmp_path / "a", images=[0]) as index:
        assert index.verify() == []
        files = sorted((tmp_path / "a" / "model").iterdir())
        assert [file.name for file in files] == ["SHA256SUMS", "config.json", "model.safetensors"]
        for file in files:
            content = bytearray(file.read_bytes())
            for at in (0, len(content) // 2, len(content) - 1):
                content[at] ^= 1
                file.write_bytes(content)
                assert index.verify()
                assert all(str(file) in problem for problem in index.verify())
                with pytest.raises(ValueError, match=r"must have the checksum in .*SHA256SUMS, got another"):
                    load_model(index.path)
                content[at] ^= 1
            file.write_bytes(content)
        files[1].unlink()
        assert index.verify()[0].endswith("got no such file")


def test_replaced_model_is_never_lost(
    data: placket.data.Dataset, model: Rpf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off before each of its steps, the index has a whole model, and another call ends well."""
    index = tmp_path / "index"
    keep_model(model, index, flip=False)
    other = small(data)
    torch.nn.init.normal_(next(other.parameters()))

    class CutOff(Exception):
        pass

    rename = Path.rename
    for steps in range(3):
        left = [steps]

        def stop(path: Path, target: Path, left: list[int] = left) -> Path:
            if left[0] == 0:
                raise CutOff
            left[0] -= 1
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", stop)
            # The second call finds what the first has left.
            for wanted in (other, model):
                with contextlib.suppress(CutOff):
                    replace_model(wanted, index)
                assert verify_model(index) == []
                load_model(index)
        replace_model(other, index)
        kept = load_model(index).state_dict()
        assert all(torch.equal(kept[name], tensor) for name, tensor in other.state_dict().items())
        assert sorted(path.name for path in index.iterdir()) == ["model"]
