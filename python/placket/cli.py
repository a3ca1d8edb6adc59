"""The command line: thin functions over the package, and the only place with jsonargparse."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import numpy as np
    from jsonargparse import ArgumentParser, Namespace
    from numpy.typing import NDArray

    from placket.config import TrainConfig
    from placket.index import AttributeIndex, Hit
    from placket.nn import Model

__all__ = ["main"]


class Failure(Exception):
    """A command found what it looked for to be wrong; the text is for people, and may be empty."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0 on success, 1 on failure. Wrong usage ends the process with 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parser = _parser(arguments)
    except ModuleNotFoundError as error:
        if error.name != "jsonargparse":
            raise
        print('placket: the command line needs jsonargparse; pip install "placket[cli]"', file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:  # the file of --config
        print(f"placket: {_sentence(error)}", file=sys.stderr)
        return 1
    options = parser.parse_args(arguments)
    run, given = _chosen(options)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            run(given)
    except KeyboardInterrupt:
        print("placket: stopped by the keyboard", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, head for example, has had enough
        sys.stderr.close()
        return 1
    except Exception as error:
        if given.debug:
            traceback.print_exc()
        elif text := _sentence(error):
            print(f"placket: {text}", file=sys.stderr)
        return 1
    return 0


def _demo(options: Namespace) -> None:
    from placket import demo

    demo.run(options.out, options.seed)


def _scores(options: Namespace) -> None:
    from placket import scores
    from placket.runs import write_json

    found = scores.run(
        options.out,
        options.setting,
        data=options.data,
        methods=None if options.methods is None else options.methods.split(","),
        seeds=options.seeds,
        say=lambda step: print(step, file=sys.stderr, flush=True),
    )
    if options.json is not None:
        write_json(options.json, found.to_dict())
    print(found.tables(options.format))


def _doctor(options: Namespace) -> None:
    from placket import doctor

    findings = doctor.examine()
    _show(options, doctor.as_dicts(findings), doctor.table(findings))


def _data_generate(options: Namespace) -> None:
    from placket.data import garments

    if options.products is not None:
        garments.generate_products(options.dir, options.products, size=options.size, seed=options.seed)
    else:
        garments.generate(options.dir, items=options["items"], size=options.size, seed=options.seed)


def _data_verify(options: Namespace) -> None:
    from placket import data

    report = data.verify(options.dir)
    _show(options, report.as_dicts(), report.table())
    if not report.ok:
        raise Failure


def _data_pack(options: Namespace) -> None:
    from placket import data

    with _progress() as show:
        packed = data.pack(
            data.open(options.dir),
            options.store,
            size=options.size,
            orientation=options.orientation,
            progress=show,
        )
    print(f"{options.store}: {len(packed.store)} images, {options.store.stat().st_size:,} bytes")


def _train(options: Namespace) -> None:
    from placket.train import train

    config = _train_config(options)
    result = train(config, run=options.run_dir, resume=options.resume)
    for stage, best in result.best.items():
        print(f"{stage}: " + ("not evaluated" if best is None else f"MAP {best:.2f}"))
    print(result.folder)


def _evaluate(options: Namespace) -> None:
    import placket
    from placket import rivals
    from placket.models import as_network
    from placket.runs import write_json
    from placket.tables import render

    if options.rivals is not None and options.protocol != "asfr-map-all/v1":
        raise ValueError(f"evaluate: --rivals needs protocol asfr-map-all/v1, got {options.protocol}")
    model = placket.load(options.checkpoint, device=options.device)
    data = placket.data.open(options.data)
    result = placket.evaluate(
        model,
        data,
        options.split,
        options.protocol,
        attributes=dict(map(_weighted, options.attribute)) if options.attribute else None,
        gallery=options.gallery,
        by_category=options.by_category or None,
        regions=options.regions,
        reference=options.reference,
        tune_region=None if options.tune_region is None else options.tune_region.replace("-", " "),
        flip=options.flip,
        rerank=options.rerank,
        ranking=options.ranking,
        class_weight=options.class_weight,
        allow_missing=options.allow_missing,
    )
    found = result.to_dict()
    tables = [result.table(options.format)]
    if options.rivals is not None:
        compared = {"this model": result}
        compared |= rivals.compare(
            as_network(model, "evaluate"),
            data,
            options.split,
            trunk_weights=options.trunk_weights,
            minutes=options.rivals,
            say=lambda step: print(step, file=sys.stderr),
        )
        found["rivals"] = {name: rival.to_dict() for name, rival in list(compared.items())[1:]}
        tables.append(render(rivals.rows(compared), format=options.format))
    if options.json == "-":
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    if options.json is not None:
        write_json(options.json, found)
    print("\n\n".join(tables))
    if options.published:  # last, since it may be refused
        print("\n" + result.table(options.format, published=True))


def _compose(options: Namespace) -> None:
    import placket
    from placket.composed import FitConfig
    from placket.nn import Composition, RafClip
    from placket.words import train_composition

    model = placket.load(options.checkpoint, device=options.device)
    if not isinstance(model, RafClip):
        raise ValueError(f"compose: model must be one with words, raf_clip, got {model.name}")
    import torch

    composition = Composition(
        options.composition, model.embedding_dim, torch.Generator().manual_seed(options.seed)
    )
    settings = {key: options[key] for key in ("epochs", "batch", "lr", "scale", "seed")}
    train_composition(
        model,
        placket.data.open(options.data),
        composition,
        FitConfig(**settings),
        split=options.split,
        path=options.features,
        report=lambda epoch, loss: print(
            f"epoch {epoch} of {options.epochs}: loss {loss:.4f}", file=sys.stderr
        ),
    )
    model.save(options.out)
    print(options.out)


def _compare(options: Namespace) -> None:
    from placket.protocols import Result, compare

    found = compare(Result.load(options.a), Result.load(options.b), seed=options.seed)
    _show(options, found.to_dict(), found.table())


def _embed(options: Namespace) -> None:
    import numpy as np

    import placket
    from placket.runs import replacing

    if options.out.suffix != ".npz":
        raise ValueError(f"embed: --out must be an .npz file, got {options.out}")
    model = placket.load(options.checkpoint, device=options.device)
    split = placket.data.open(options.data).split(options.split)
    embeddings = placket.embed_split(model, split).numpy()
    with replacing(options.out) as file:
        np.savez(
            file,
            embeddings=embeddings,
            filenames=np.array(split.filenames),
            spaces=np.array(model.default_spaces),
        )
    print(f"{options.out}: embeddings {list(embeddings.shape)} of images, spaces and dimensions")


def _index_build(options: Namespace) -> None:
    import placket

    model = placket.load(options.checkpoint, device=options.device)
    data = placket.data.open(options.data)
    with _progress() as show:
        index = placket.index.build(
            model,
            data.split(options.split),
            options.out,
            captions=data.captions(options.split),
            engine=options.engine,
            flip=options.flip,
            progress=show,
            **dict(map(_option, options.option or ())),
        )
    print(f"{options.out}: {len(index)} images in the spaces {', '.join(index.spaces)}")


def _index_add(options: Namespace) -> None:
    import placket

    data = placket.data.open(options.data)
    split, captions = data.split(options.split), data.captions(options.split)
    model = placket.index.load_model(options.index, device=options.device)
    with placket.AttributeIndex.load(options.index) as index, _progress() as show:
        added = placket.index.add_images(index, split, captions=captions, progress=show, model=model)
        left = f", {len(split) - added} were there" if added < len(split) else ""
        print(f"{options.index}: {added} images added{left}, {len(index)} in all")


def _index_extend(options: Namespace) -> None:
    import placket

    model = placket.load(options.checkpoint, device=options.device)
    split = placket.data.open(options.data).split(options.split)
    with placket.AttributeIndex.load(options.index) as index, _progress() as show:
        names = placket.index.extend(index, model, split, progress=show)
        print(f"{options.index}: {len(index)} images in the further spaces {', '.join(names) or '(none)'}")


def _index_remove(options: Namespace) -> None:
    from placket import AttributeIndex

    with AttributeIndex.load(options.index) as index:
        ids = [_id(index, text) for text in options.ids]
        index.remove(ids)
        index.save()
        print(f"{options.index}: {len(set(ids))} items removed, {len(index)} left")


def _id(index: AttributeIndex, text: str) -> str | int:
    """Read an id; a number is meant where there is no such string."""
    return int(text) if text not in index and text.lstrip("-").isdecimal() else text


def _index_info(options: Namespace) -> None:
    from placket import AttributeIndex

    with AttributeIndex.load(options.index, read_only=True) as index:
        info = index.info()
    _show(options, info, "\n".join(f"{key}: {value}" for key, value in info.items()))


def _index_verify(options: Namespace) -> None:
    from placket import AttributeIndex

    try:
        with AttributeIndex.load(options.index, read_only=True) as index:
            problems = index.verify()
    except ValueError as error:
        problems = [str(error)]
    _show(options, problems, "\n".join(problems or ["ok"]))
    if problems:
        raise Failure


def _search(options: Namespace) -> None:
    import placket
    from placket.data.folders import images_below

    if options.image is None:
        _search_text(options)
        return
    if options.image.is_dir() and (options.box is not None or options.mask is not None):
        raise ValueError(f"search: image must be one with --box or --mask, got the folder {options.image}")
    images = sorted(images_below(options.image)) if options.image.is_dir() else [options.image]
    if not images:
        raise ValueError(f"search: {options.image} must hold images, got none")
    weights = dict(map(_weighted, options.attribute)) if options.attribute else None
    model = placket.index.load_model(options.index, device=options.device)
    with placket.AttributeIndex.load(options.index, read_only=True) as index:
        found = {
            image: placket.index.search_image(
                index,
                image,
                weights,
                text=options.text,
                box=None if options.box is None else _box(options.box),
                mask=None if options.mask is None else _mask(options.mask, model),
                flip=options.flip or None,
                k=options.k,
                where=options.where,
                group_by=options.group,
                model=model,
            )
            for image in images
        }
    if options.html is not None:
        _write_hits(options.html, weights or model.default_spaces, found)
    blocks = ["\n".join(map(_line, hits)) for hits in found.values()]
    listed = [[dataclasses.asdict(hit) for hit in hits] for hits in found.values()]
    if options.image.is_dir():
        blocks = [f"{image}\n{block}" for image, block in zip(images, blocks, strict=True)]
        each = [{"image": str(i), "hits": hits} for i, hits in zip(images, listed, strict=True)]
        _show(options, each, "\n\n".join(blocks))
    else:
        _show(options, listed[0], blocks[0])


def _search_text(options: Namespace) -> None:
    import placket

    of_images = (options.attribute, options.html, options.box, options.mask, options.flip)
    if options.text is None or any(of_images):
        raise ValueError(
            "search: image must be given, or --text alone, without --attribute, --html, --box, --mask and "
            "--flip, got no image"
        )
    model = placket.index.load_model(options.index, device=options.device)
    with placket.AttributeIndex.load(options.index, read_only=True) as index:
        hits = placket.index.search_text(
            index, options.text, k=options.k, where=options.where, group_by=options.group, model=model
        )
    _show(options, [dataclasses.asdict(hit) for hit in hits], "\n".join(map(_line, hits)))


def _line(hit: Hit) -> str:
    """Return a hit as a line: also its cosines to image and text alone, and what is known of the item."""
    parts = [
        f"{name} {hit.scores[name]:.3f}" for name in ("by the image", "by the text") if name in hit.scores
    ]
    return "  ".join([f"{hit.score:8.4f}", str(hit.id), *parts, *_known(hit)])


def _known(hit: Hit) -> list[str]:
    """Return a hit's product and its predicted values with their probabilities, where the index has them."""
    product, predicted = hit.metadata.get("product"), hit.metadata.get("predicted") or {}
    parts = [] if product is None else [f"product {product}"]
    said = [f"{name} {value} {hit.metadata['probability'][name]:.2f}" for name, value in predicted.items()]
    return [*parts, ", ".join(said)] if said else parts


def _write_hits(page: Path, spaces: Iterable[str], found: Mapping[Path, Sequence[Hit]]) -> None:
    """Write each query and its hits, with their pictures, to one HTML file."""
    from placket import report
    from placket.data import read_image

    def section(image: Path, hits: Sequence[Hit]) -> report.Section:
        shown: list[report.GalleryHit] = [
            (read_image(hit.metadata["path"]), " · ".join([f"{hit.score:.3f} {hit.id}", *_known(hit)]), None)
            for hit in hits
        ]
        row = report.gallery_html(read_image(image), None, None, shown)
        return report.Section(image.name, "" if hits else "nothing found", row)

    report.write_report(page, f"Alike in {', '.join(spaces)}", [section(*pair) for pair in found.items()])


def _explain(options: Namespace) -> None:
    import placket
    from placket import explain

    if options.image2 is not None and options.hit is not None:
        raise ValueError(f"explain: IMAGE2 must be left out with --hit, got {options.image2}")
    model = placket.load(options.checkpoint, device=options.device)
    asked = options.attribute or model.schema.names
    weights = dict(map(_weighted, asked))
    other, other_box = options.image2, None
    if options.hit is not None:
        with placket.AttributeIndex.load(options.hit[0], read_only=True) as index:
            known = index.get(_id(index, options.hit[1])).metadata
            other, other_box = Path(known["path"]), known.get("box")
    box = None if options.box is None else _box(options.box)
    found = explain.explain(model, options.image, other, weights, box=box, other_box=other_box)
    explain.write_explanation(options.out, found)
    _show(options, found.rows(), explain.table(found))


def _convert(options: Namespace) -> None:
    import placket
    from placket import weights

    schema = None if options.data is None else placket.data.open(options.data).schema
    report = weights.convert(
        options.source,
        options.checkpoint,
        trunk=options.trunk,
        schema=schema,
        image=options.image,
        text=options.text,
    )
    print(report)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show a bar on terminals; what is given is called with the images done and their number."""
    from tqdm import tqdm

    with tqdm(unit="image", disable=None) as bar:

        def show(done: int, count: int) -> None:
            bar.total = count
            bar.update(done - bar.n)

        yield show


def _option(text: str) -> tuple[str, Any]:
    """Read ``NAME=VALUE``; a value that is JSON is what it says, any other is text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"index build: --option must be NAME=VALUE, got '{text}'")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _box(text: str) -> list[int]:
    """Read ``X0,Y0,X1,Y1``."""
    try:
        x0, y0, x1, y1 = map(int, text.split(","))
    except ValueError:
        raise ValueError(f"--box must be X0,Y0,X1,Y1 in whole pixels, got '{text}'") from None
    return [x0, y0, x1, y1]


def _mask(text: str, model: Model) -> NDArray[np.bool_]:
    """Read ``FILE`` or ``FILE=VALUE``, upright as the photograph will be."""
    from placket.data import read_mask

    file, equals, value = text.rpartition("=")
    upright = model.preprocess["orientation"] == "apply"
    if not equals or Path(text).is_file():
        return read_mask(text, upright=upright)
    if not value.isdecimal() or int(value) > 255:
        raise ValueError(f"search: --mask must be FILE or FILE=VALUE, a value from 0 to 255, got '{text}'")
    return read_mask(file, int(value), upright)


def _weighted(text: str) -> tuple[str, float]:
    """Read ``NAME`` or ``NAME=WEIGHT``."""
    name, equals, weight = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise ValueError(
            f"--attribute: weight of attribute '{name}' must be a number, got '{weight}'"
        ) from None


def _show(options: Namespace, data: Any, table: str) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False) if options.json else table)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"placket: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _sentence(error: Exception) -> str:
    if isinstance(error, Failure):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    return text or type(error).__name__


_Add = Callable[["ArgumentParser"], None]


@dataclasses.dataclass(frozen=True)
class _Command:
    run: Callable[[Namespace], None]
    help: str
    example: str
    add: _Add = lambda parser: None
    usage: str | None = None  # where argparse's own would be a page long


def _add_demo(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder for data, run, index and report.html"
    )
    parser.add_argument("--seed", type=int, default=0, help="of data and training")


def _add_scores(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--setting",
        choices=("minutes", "photographs", "night"),
        default="minutes",
        help="45 seconds a method on generated garments; 12 minutes a method on photographs; or a night on "
        "both, with three seeds and the papers' recipes",
    )
    parser.add_argument(
        "--data", type=Path, help="the photographs; $PLACKET_DATA/deepfashion-fine6 by default, where it is"
    )
    parser.add_argument("--methods", help="those that take part, rpf,rpf-ours for example")
    parser.add_argument("--seeds", type=int, help="how many; the setting's by default")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/scores"), help="folder; a run that was stopped in it goes on"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write scores.json there as well")
    parser.add_argument(
        "--format", choices=("text", "markdown", "latex"), default="text", help="of the tables"
    )


def _add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _add_generate(parser: ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="folder to write; new or empty")
    count = parser.add_mutually_exclusive_group()
    count.add_argument("--items", type=int, default=2000, help="images, each of a garment of its own")
    count.add_argument(
        "--products", type=int, help="photographs by shops and consumers, four or five of each product"
    )
    parser.add_argument("--size", type=int, default=160, help="side in pixels")
    parser.add_argument("--seed", type=int, default=0)


_DATA = "the data set: a folder, a store, or the YAML file of a table"


def _add_verify(parser: ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help=_DATA)
    _add_json(parser)


def _add_pack(parser: ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="the data set: a folder, or the YAML file of a table")
    parser.add_argument("store", type=Path, help="the file to write; one that was cut off is gone on with")
    parser.add_argument(
        "--size", type=int, help="pack decoded pixels, the short side at most this; default: the files"
    )
    parser.add_argument(
        "--orientation",
        choices=("apply", "ignore"),
        default="apply",
        help="of decoded pixels: what to do with the EXIF tag, as the model's preprocessing has it",
    )


def _add_model_and_data(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a checkpoint's folder, runs/NAME/best for example")
    parser.add_argument("data", type=Path, help=_DATA)
    parser.add_argument("--split", default="test", help="of the data set")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")


def _add_evaluate(parser: ArgumentParser) -> None:
    _add_model_and_data(parser)
    parser.add_argument(
        "--protocol",
        default="asfr-map-all/v1",
        help="or asfr-multilabel/v1, c2s-topk/v1, inshop-recall/v1, recognition/v1, composed-recall/v1, "
        "fashioniq-original/v1, fashioniq-val/v1; python/README.md defines them",
    )
    parser.add_argument(
        "--attribute",
        action="append",
        metavar="NAME[=WEIGHT]",
        help="of the products' protocols: in what photos shall be alike, a space of the model; may be given "
        "several times; all by default",
    )
    parser.add_argument(
        "--rerank",
        choices=("k-reciprocal", "query-expansion"),
        help="of the products' protocols: what changes the ranking after the search; compare tells its gain",
    )
    parser.add_argument(
        "--gallery",
        choices=("all-shop", "per-subset"),
        default="all-shop",
        help="of c2s-topk/v1: the shop photos of all splits but train, or of the split alone",
    )
    parser.add_argument(
        "--by-category",
        action="store_true",
        help="of the products' protocols: seek within the query's value of the data's first attribute",
    )
    parser.add_argument(
        "--regions", action="store_true", help="of recognition/v1: of the split's regions, not its images"
    )
    parser.add_argument(
        "--reference",
        choices=("kept", "removed"),
        default="kept",
        help="of composed-recall/v1: whether a query's own image is a candidate",
    )
    parser.add_argument(
        "--tune-region",
        choices=("overall", "per-attribute"),
        help="choose the weight of the region branch on valid",
    )
    parser.add_argument(
        "--flip", action="store_true", help="average the embeddings of each image and its mirror image"
    )
    parser.add_argument(
        "--ranking",
        choices=("embedding", "agreement", "both"),
        default="embedding",
        help="rank by embeddings, by whether two images are likely to have the same value, or by both; class "
        "probabilities and weight are chosen on valid",
    )
    parser.add_argument(
        "--class-weight",
        type=float,
        metavar="WEIGHT",
        help="of the class agreement in --ranking both, in place of the one chosen on valid; or of the "
        "probability in asfr-multilabel-class/v1, 1 by default",
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="leave out images that are not there; the result is then one of a subset",
    )
    parser.add_argument(
        "--published", action="store_true", help="show published figures by the same lists as well"
    )
    parser.add_argument(
        "--format", choices=("text", "markdown", "latex"), default="text", help="of the table"
    )
    parser.add_argument(
        "--rivals",
        type=float,
        metavar="MINUTES",
        help="compare with frozen features, ridge, and a classifier fine-tuned for so long",
    )
    parser.add_argument(
        "--trunk-weights", help="what the rivals' trunk starts from, efficientnet_lite0 for example"
    )
    parser.add_argument(
        "--json", nargs="?", const="-", help="write the result as JSON to a file, or print it"
    )


def _add_compose(parser: ArgumentParser) -> None:
    from placket.composed import FitConfig

    usual = FitConfig()
    parser.add_argument("checkpoint", type=Path, help="of a model with words, raf_clip")
    parser.add_argument("data", type=Path, help=f"{_DATA}; with composed queries")
    parser.add_argument("--composition", default="agcn", help="agcn, tirg or combiner, with its settings")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint to write")
    parser.add_argument("--split", default="train", help="to learn from")
    parser.add_argument("--epochs", type=int, default=usual.epochs, help="passes over the queries")
    parser.add_argument("--batch", type=int, default=usual.batch, help="queries, each other's negatives")
    parser.add_argument("--lr", type=float, default=usual.lr, help="of AdamW")
    parser.add_argument("--scale", type=float, default=usual.scale, help="of the cosines in the loss")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of initial values, order and dropout")
    parser.add_argument(
        "--features", type=Path, metavar="FILE", help="keeps the images' features, for further trainings"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")


def _add_compare(parser: ArgumentParser) -> None:
    parser.add_argument("a", type=Path, help="a result that placket evaluate --json wrote")
    parser.add_argument("b", type=Path, help="another, by the same protocol and lists")
    parser.add_argument("--seed", type=int, default=0, help="of bootstrap and permutations")
    _add_json(parser)


def _add_embed(parser: ArgumentParser) -> None:
    _add_model_and_data(parser)
    parser.add_argument("--out", type=Path, required=True, help=".npz with embeddings, filenames and spaces")


def _add_index_build(parser: ArgumentParser) -> None:
    _add_model_and_data(parser)
    parser.add_argument("--out", type=Path, required=True, help="the index's folder")
    parser.add_argument("--engine", default="flat", help="flat, faiss or milvus")
    parser.add_argument(
        "--flip",
        action="store_true",
        help="average the embeddings of each image and its mirror image, of later images and queries too",
    )
    parser.add_argument(
        "--option",
        action="append",
        metavar="NAME=VALUE",
        help="of the engine, storage=int8 for example; may be given several times",
    )


_INDEX = "the index's folder"


def _add_index(parser: ArgumentParser) -> None:
    parser.add_argument("index", type=Path, help=_INDEX)
    _add_json(parser)


def _add_index_add(parser: ArgumentParser) -> None:
    parser.add_argument("index", type=Path, help=_INDEX)
    parser.add_argument("data", type=Path, help=_DATA)
    parser.add_argument("--split", default="test", help="of the data set")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")


def _add_index_extend(parser: ArgumentParser) -> None:
    parser.add_argument("index", type=Path, help=_INDEX)
    _add_model_and_data(parser)


def _add_index_remove(parser: ArgumentParser) -> None:
    parser.add_argument("index", type=Path, help=_INDEX)
    parser.add_argument("ids", nargs="+", metavar="ID", help="of the items to remove")


_ATTRIBUTE = "NAME[=WEIGHT]"


def _add_search(parser: ArgumentParser) -> None:
    parser.add_argument("index", type=Path, help=_INDEX)
    parser.add_argument(
        "image",
        type=Path,
        nargs="?",
        help="the photograph to search by, or a folder of them; or --text alone",
    )
    parser.add_argument(
        "--text", help="what shall differ, 'the same in red', or what is sought; for a model with words"
    )
    parser.add_argument(
        "--attribute",
        action="append",
        metavar=_ATTRIBUTE,
        help="in what the hits shall be alike, a space of the index; may be given several times; all by "
        "default",
    )
    parser.add_argument(
        "--box",
        metavar="X0,Y0,X1,Y1",
        help="where the garment is in the photograph, in pixels; the whole of it by default",
    )
    parser.add_argument(
        "--mask",
        metavar="FILE[=VALUE]",
        help="a grey PNG of the photograph's size that shows the garment by this value, or by any but 0; for "
        "a model of segmented regions",
    )
    parser.add_argument(
        "--flip",
        action="store_true",
        help="average the embeddings of photograph and mirror image, as is done where the index was built so",
    )
    parser.add_argument(
        "--group",
        metavar="NAME",
        help="show the best hit only of those with the same value in the metadata, product for example",
    )
    parser.add_argument(
        "--where", help="a condition on the metadata, \"domain = 'shop' and labels.colour has 'red'\""
    )
    parser.add_argument("-k", type=int, default=10, help="hits")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the pictures to one page as well")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    _add_json(parser)


def _add_explain(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a checkpoint's folder, runs/NAME/best for example")
    parser.add_argument("image", type=Path, help="a photograph")
    parser.add_argument("image2", type=Path, nargs="?", help="another one, to be compared with the first")
    parser.add_argument("--hit", nargs=2, metavar=("INDEX", "ID"), help="an item of an index, instead")
    parser.add_argument(
        "--attribute",
        action="append",
        metavar=_ATTRIBUTE,
        help="where to look; may be given several times; all by default",
    )
    parser.add_argument(
        "--box", metavar="X0,Y0,X1,Y1", help="where the garment is in IMAGE, in pixels; all of it by default"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="HTML page to write")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    _add_json(parser)


def _add_convert(parser: ArgumentParser) -> None:
    parser.add_argument("source", help="a checkpoint of the reference code, or a trunk's weights")
    parser.add_argument("checkpoint", type=Path, help="folder to write")
    parser.add_argument("--trunk", help="which trunk the source holds, unless it is a whole model")
    parser.add_argument("--image", help="image tower of a CLIP whose file has no configuration beside it")
    parser.add_argument("--text", help="its text tower")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="data set of a whole model, whose attributes it then knows"
    )


_COMMANDS: Mapping[str, _Command] = {
    "demo": _Command(
        _demo,
        "generate garments, train RPF on them, evaluate, search, and write report.html",
        "placket demo --out runs/demo",
        _add_demo,
    ),
    "scores": _Command(
        _scores,
        "train every method for the same time, rank by it, and print one table with simple rivals beside it",
        "placket scores --setting minutes --out runs/scores",
        _add_scores,
    ),
    "doctor": _Command(
        _doctor,
        "say what this installation is made of and the command that adds what it lacks",
        "placket doctor --json",
        _add_json,
    ),
    "data generate": _Command(
        _data_generate,
        "draw garments with known attributes, regions, masks and sentences, or photographs of products",
        "placket data generate data/garments --items 2000 --seed 1",
        _add_generate,
    ),
    "data verify": _Command(
        _data_verify,
        "read every list and decode every image of a data set, and say what is wrong",
        "placket data verify data/garments",
        _add_verify,
    ),
    "data pack": _Command(
        _data_pack,
        "write a data set into one file, which opens like the folder",
        "placket data pack data/garments data/garments.store",
        _add_pack,
    ),
    "train": _Command(
        _train,
        "train a model; what is not given has the configuration's value",
        "placket train --config rpf.yaml --data.root data/garments --stages.region.epochs 3 --run runs/first",
        usage="placket train [--config FILE] [--section.key VALUE ...] [--run DIR] [--resume] [--debug]",
    ),
    "compose": _Command(
        _compose,
        "let a model with words learn what a text does to an image, from composed queries and fixed towers",
        "placket compose runs/words/best data/hm.yaml --composition agcn --out runs/composed",
        _add_compose,
    ),
    "evaluate": _Command(
        _evaluate,
        "evaluate a model on a split by a named protocol",
        "placket evaluate runs/first/best data/garments --split test --json first.json",
        _add_evaluate,
    ),
    "compare": _Command(
        _compare,
        "test whether two results by the same protocol and lists differ, query by query",
        "placket compare first.json second.json",
        _add_compare,
    ),
    "embed": _Command(
        _embed,
        "embed every image of a split under every attribute",
        "placket embed runs/first/best data/garments --out embeddings.npz",
        _add_embed,
    ),
    "index build": _Command(
        _index_build,
        "embed a split and make it searchable by attribute",
        "placket index build runs/first/best data/garments --out runs/first/index",
        _add_index_build,
    ),
    "index add": _Command(
        _index_add,
        "embed the images of another split or data set with the index's model and add them",
        "placket index add runs/first/index data/more --split train",
        _add_index_add,
    ),
    "index extend": _Command(
        _index_extend,
        "add the attributes that the index's model was extended by, without a change to the others",
        "placket index extend runs/first/index runs/more/best data/garments",
        _add_index_extend,
    ),
    "index remove": _Command(
        _index_remove,
        "remove items from an index",
        "placket index remove runs/first/index img/0001.jpg img/0002.jpg",
        _add_index_remove,
    ),
    "index info": _Command(
        _index_info, "say what an index holds", "placket index info runs/first/index", _add_index
    ),
    "index verify": _Command(
        _index_verify, "read every byte of an index", "placket index verify runs/first/index", _add_index
    ),
    "search": _Command(
        _search,
        "find the images alike in one or several attributes",
        "placket search runs/first/index photo.jpg --attribute neckline --attribute sleeve=0.5 -k 5",
        _add_search,
    ),
    "explain": _Command(
        _explain,
        "show where a model looks, and why two photographs are alike",
        "placket explain runs/first/best photo.jpg other.jpg --attribute neckline --out page.html",
        _add_explain,
    ),
    "convert": _Command(
        _convert,
        "turn weights made elsewhere into a checkpoint, with a strict report of every tensor",
        "placket convert model_best.pth.tar runs/reference",
        _add_convert,
    ),
}


def _parser(arguments: Sequence[str]) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    import placket

    root = ArgumentParser(prog="placket", description=placket.__doc__, version=placket.__version__)
    groups: dict[str, Any] = {"": root.add_subcommands(dest="command")}
    for name, command in _COMMANDS.items():
        group, _, leaf = name.rpartition(" ")
        if group not in groups:
            parent = ArgumentParser(description=f"{group} commands")
            groups[""].add_subcommand(group, parent, help=f"{group} commands")
            groups[group] = parent.add_subcommands(dest="command")
        parser = ArgumentParser(
            description=command.help[0].upper() + command.help[1:] + ".",
            epilog=f"example: {command.example}",
            usage=command.usage,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == "train":
            _add_train(parser, arguments)
        command.add(parser)
        parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
        groups[group].add_subcommand(leaf, parser, help=command.help)
    return root


def _chosen(options: Namespace) -> tuple[Callable[[Namespace], None], Namespace]:
    """Return the function of the command given, and its own options."""
    name = options.command
    given = options[name]
    while "command" in given:
        name, given = f"{name} {given.command}", given[given.command]
    return _COMMANDS[name].run, given


def _add_train(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    """Offer every field of the configuration that --config names, with its value there as the default."""
    config = _base_config(arguments)
    parser.add_argument("--config", help="a YAML file, or a shipped recipe by its name; rpf.yaml by default")
    parser.add_argument(
        "--run", dest="run_dir", type=Path, metavar="DIR", help="the run's folder; runs/NAME-TIME by default"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --run")
    for section in ("model", "data", "loss", "trainer"):
        _add_fields(parser, section, getattr(config, section))
    for stage in config.stages:
        _add_fields(parser, f"stages.{stage.name}", stage)


def _add_fields(parser: ArgumentParser, place: str, section: Any) -> None:
    parser.add_class_arguments(type(section), place, help=f"the configuration's {place}")
    parser.set_defaults(_leaves(place, section))


def _leaves(place: str, section: Any) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in vars(section).items():
        name = f"{place}.{key}"
        leaves |= _leaves(name, value) if dataclasses.is_dataclass(value) else {name: value}
    return leaves


def _base_config(arguments: Sequence[str]) -> TrainConfig:
    """Read the file of --config, or the saved one of a run that is resumed."""
    from placket.config import load_config

    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    given.add_argument("--config")
    given.add_argument("--run")
    given.add_argument("--resume", action="store_true")
    if list(arguments[:1]) != ["train"]:
        return load_config("rpf")
    known, _ = given.parse_known_args(arguments)
    if known.config is None and known.resume and known.run is not None:
        return load_config(Path(known.run) / "config.yaml")
    return load_config(known.config or "rpf")


def _train_config(options: Namespace) -> TrainConfig:
    from placket.config import from_dict

    given = options.as_dict()
    sections = {key: given[key] for key in ("model", "data", "loss", "trainer")}
    return from_dict({**sections, "stages": list(given["stages"].values())})
