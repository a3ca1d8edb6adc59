"""Small data sets in every layout, ways to damage their lists, and what must hold for any data set.

A layout is added by its files in ``LAYOUTS``.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import placket.data
from fuzz.published_layouts import PUBLISHED
from placket.data import Dataset, DatasetError


@dataclass(frozen=True)
class Layout:
    """A data set without images: a missing image is a problem that verify tells of, as any other."""

    files: dict[str, str]
    """Path relative to the folder, and text."""
    place: str = "."
    """What ``placket.data.open`` takes, relative to the folder."""

    def write(self, folder: Path) -> Path:
        """Write the data set whole and return what opens it."""
        for name, text in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder / self.place


def lines(*rows: str) -> str:
    return "".join(f"{row}\n" for row in rows)


_NAMES = '{"ATTRIBUTES": ["sleeve", "neck"], "ATTRIBUTES_NUM": {"sleeve": 3, "neck": 2}'
_VALUES = '{"sleeve": ["no", "short", "long"], "neck": ["o", "v"]}'
_TABLE = lines(
    "number,product,colour,kind,text,part,x0,y0,x1,y1",
    '0011,p1,red|blue,shirt,"a, comma",fit,0,0,20,30',
    "0012,p1,blue,shirt,,fit,1,1,20,30",
    '0021,,red,skirt,"a ""quote""",check,1,1,20,30',
    '0022,p2,rare,skirt,"two\nlines",check,1,1,20,30',
    "0031,p3,blue,,x,unused,1,1,20,30",
)
_COLUMNS = lines(
    "table: table.csv",
    "image: images/{number:.3}/{number}.jpg",
    "attributes: {colour: colour, kind: kind}",
    "split: part",
    "splits: {fit: train, check: test}",
    "identity: product",
    "caption: text",
    "box: [x0, y0, x1, y1]",
    'separator: "|"',
    "least_images: 1",
    "query_share: 0.5",
)

LAYOUTS = {
    "asen": Layout(
        {
            "meta.json": f'{{"data": {_NAMES}, "VALUES": {_VALUES}}}}}',
            "filenames_train.txt": lines(*(f"img/{i}.jpg" for i in range(4))),
            "label_train.txt": lines("0 0 0 1 0", "1 0 1 1 1", "2 0 2", "3 0 0 0 1 1 1"),
            "bbox_train.txt": lines(*(f"{i} 2 {20 + i} 33" for i in range(4))),
            "filenames_test.txt": lines("img/6.jpg", "img/7.jpg", "img/8.jpg"),
            "label_test.txt": lines("0 0 0 1 0", "1 0 1 1 1", "2 0 0 1 1"),
            "query_test.txt": lines("0 0 0", "0 1 0"),
            "candidate_test.txt": lines("1 0 1", "1 1 1", "2 0 0", "2 1 1"),
            "bbox_test.txt": lines("0 0 42 46", "1 1 40 41", "2 2 30 30"),
            "regions_test.txt": lines("0 0 1 2 9 9", "0 0 20 2 29 9", "1 1 3 3 8 9"),
            "captions_test.txt": lines("0\ta plain top", "1\ta v neck", "2\tanother"),
        }
    ),
    # As DeepFashion is published: no filenames, and labels that are numbered across attributes.
    "asen-renumbered": Layout(
        {
            "meta.json": f'{{"x": {_NAMES}}}}}',
            "label_test.txt": lines("0 1 0 2 3", "1 1 1 2 4", "2 1 2 2 3"),
            "query_test.txt": lines("0 0 0", "1 1 1"),
            "candidate_test.txt": lines("1 0 1", "2 0 2", "2 1 0"),
        }
    ),
    "table": Layout({"layout.yaml": _COLUMNS, "table.csv": _TABLE}, "layout.yaml"),
    "table-tsv": Layout(
        {
            "layout.yaml": lines("table: t.tsv", 'image: "{file}"', "attributes: {a: a}"),
            "t.tsv": lines("file\ta", "1.jpg\tx", "2.jpg\ty", "3.png\tx"),
        },
        "layout.yaml",
    ),
    "folders": Layout(
        {f"{split}/{kind}/{i}.jpg": "" for split in ("train", "val") for kind in "ab" for i in range(3)}
    ),
}
LAYOUTS |= {name: Layout(files) for name, files in PUBLISHED.items()}
LISTED = [name for name in LAYOUTS if name != "folders"]  # which has no lists: any file is an image


# What must hold


def require(good: bool, what: str) -> None:
    if not good:
        raise AssertionError(what)


def read_all(place: Path, *, verify: bool = True) -> bool:
    """Open a data set, read all of it and have it verified, and return whether its lists were good.

    Raises:
        AssertionError: a split is not what its description says, or a refusal does not say why.
        Exception: any other that comes out of the readers is a fault of theirs.
    """
    try:
        data = placket.data.open(place)
    except DatasetError as error:
        require(len(str(error)) > 10, "a refusal says why")
        return False
    good = True
    for name in data.splits:
        _, problems = data.inspect(name)
        errors = [problem for problem in problems if problem.severity == "error"]
        reads = (data.split, data.regions, data.region_split, data.captions, data.compositions)
        refused = [read for read in reads if _refuses(read, name)]
        require(bool(errors) == bool(refused), f"inspect and split agree: {errors}, {refused}")
        if errors:
            good = False
        else:
            _check_split(data, name)
    if verify:
        report = placket.data.verify(data)
        json.dumps([report.table(), report.as_dicts()])
    return good


def _refuses(read: Callable[[str], object], name: str) -> bool:
    try:
        read(name)
    except DatasetError:
        return True
    return False


def _check_split(data: Dataset, name: str) -> None:
    split, regions, captions = data.split(name), data.regions(name), data.captions(name)
    compositions = data.compositions(name)
    counts = np.array(split.schema.value_counts)

    def within(ids: np.ndarray, end: int | np.ndarray) -> bool:
        return bool(np.all((ids >= 0) & (ids < end)))

    def is_triples(rows: np.ndarray) -> bool:
        good = rows.shape[1:] == (3,) and within(rows[:, 0], len(split)) and within(rows[:, 1], len(counts))
        return good and within(rows[:, 2], counts[rows[:, 1]])

    def is_boxes(rows: np.ndarray) -> bool:
        return bool(rows.min(initial=0) >= 0 and np.all(rows[:, :2] < rows[:, 2:]))

    labels = split.labels
    require(len(split) > 0 and len(labels) == len(split), "an image for every row of labels")
    require(len(split.filenames) in (0, len(split)), "a file for every image, or none")
    require(within(labels.attribute, len(counts)), "attributes in range")
    require(within(labels.value, counts[labels.attribute]), "values in range")
    require(is_triples(split.queries) and is_triples(split.candidates), "lists in range")
    if split.boxes is not None:
        require(split.boxes.shape == (len(split), 4) and is_boxes(split.boxes), "a box for every image")
    for column in (split.identities, split.domains, split.sequences):
        require(column is None or len(column) == len(split), "a number for every image")
    for images in (split.query_images, split.gallery_images):
        require(images is None or within(images, len(split)), "query and gallery images in range")
    if regions is not None:
        require(within(regions[:, 0], len(split)) and is_boxes(regions[:, 2:]), "regions in range")
    rows = data.region_split(name)
    if rows is not None and rows.photos is not None and rows.boxes is not None:
        require(within(rows.photos, len(split)) and len(rows.photos) == len(rows), "photos in range")
        require(rows.boxes.shape == (len(rows), 4) and is_boxes(rows.boxes), "a box for every region")
        require(len(rows.labels) == len(rows), "labels for every region")
        for triples in (rows.queries, rows.candidates):
            require(within(triples[:, 0], len(rows)), "lists of regions in range")
        rows.image_list()  # checks that there is a mask for each, or for none
    if captions is not None:
        require(len(captions) == len(split), "a caption for every image")
    if compositions is not None:
        begin = compositions.begin
        require(within(compositions.reference, len(split)), "references in range")
        require(within(compositions.target + 1, len(split) + 1), "targets in range, -1 for none")
        require(len(begin) == len(compositions) + 1 and begin[-1] == len(compositions.captions), "sentences")
        require(compositions.subset is None or within(compositions.subset, len(split)), "subset in range")
    require(len(list(split.records)) == len(split), "a record for every image")
    labels.to_native()
    if split.filenames:
        split.image_list()


# Damage

_ODD = r"""
-1 0 1 2 3 007 99999999 999999999 4294967296 9223372036854775808 1e9 1.5 nan inf ² ١ 0x 1_0 2020-13-45
true null ~ '' "" / ../x /etc/passwd . .. \ { } [ ] , : | " ' # & * ! % @ ` {} [] <<: \ud800 !!int !!binary
{number {number} {0} {number.real} {number[0]} {number!r} {number:9} {number:x} {number:{x}}
{number:>99999999} train valid test a"""
_WORDS = [*_ODD.split(), "", " ", "\t", "\0", "\x1a", "\x85", "\u2028", "\ufeff", 5000 * "9", 5000 * "x"]


def damage(data: bytes, choice: random.Random) -> bytes:
    """Return the bytes of a list with one to three things wrong, or by chance none."""
    kinds = (_truncate, _flip, _overwrite, _lines, _words, _words, _words, _encode)
    for _ in range(choice.choice((1, 1, 1, 2, 3))):
        data = choice.choice(kinds)(data, choice)
    return data


def _run(data: bytes, choice: random.Random) -> tuple[int, int]:
    begin = choice.randrange(len(data) + 1)
    return begin, min(len(data), begin + choice.randrange(1, 30))


def _truncate(data: bytes, choice: random.Random) -> bytes:
    return data[: choice.randrange(len(data) + 1)]


def _flip(data: bytes, choice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(choice.randrange(1, 4) if data else 0):
        changed[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, choice: random.Random) -> bytes:
    begin, end = _run(data, choice)
    others = (b"", choice.randbytes(end - begin), 2 * data[begin:end])
    return data[:begin] + choice.choice(others) + data[end:]


def _lines(data: bytes, choice: random.Random) -> bytes:
    rows = data.split(b"\n")
    first, second = choice.randrange(len(rows)), choice.randrange(len(rows))
    kind = choice.randrange(4)
    if kind == 0:
        del rows[first]
    elif kind == 1:
        rows.insert(second, rows[first])
    elif kind == 2:
        rows[first], rows[second] = rows[second], rows[first]
    else:
        rows.insert(first, b"")
    return b"\n".join(rows)


def _words(data: bytes, choice: random.Random) -> bytes:
    """Put another word for one of the words, which any of the separators part."""
    ends = [i for i, byte in enumerate(data) if byte in b' \t\n,:{}[]"|/.']
    begin = choice.choice([-1, *ends]) + 1
    end = next((i for i in ends if i >= begin), len(data))
    return data[:begin] + choice.choice(_WORDS).encode() + data[end:]


def _encode(data: bytes, choice: random.Random) -> bytes:
    text = data.decode("latin-1")
    kind = choice.randrange(6)
    if kind == 0:
        return b"\xef\xbb\xbf" + data
    if kind == 1:
        return data.replace(b"\n", b"\r\n")
    if kind == 2:
        return data.replace(b"\n", b"\r")
    if kind == 3:
        return text.encode("utf-16")
    if kind == 4:
        return choice.choice((b"[", b"{", b'{"a":', b"- ", b"[[", b'"')) * choice.choice((2, 50, 100_000))
    return data.removesuffix(b"\n")


def damage_file(path: Path, choice: random.Random) -> None:
    """Damage a file, or take it away, put a folder in its place, or damage it when it is compressed."""
    kind = choice.randrange(20)
    data = path.read_bytes()
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.unlink()
        path.mkdir()
    elif kind == 2:
        path.unlink()
        packed = choice.choice((_truncate, _flip, _overwrite))(gzip.compress(data, mtime=0), choice)
        path.with_name(f"{path.name}.gz").write_bytes(packed)
    else:
        path.write_bytes(damage(data, choice))


def restore_file(path: Path, text: str) -> None:
    """Undo what ``damage_file`` did to a file of this text."""
    path.with_name(f"{path.name}.gz").unlink(missing_ok=True)
    if path.is_dir():
        path.rmdir()
    path.write_text(text)


if __name__ == "__main__":
    print(*LISTED)
