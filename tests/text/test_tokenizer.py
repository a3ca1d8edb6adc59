"""CLIP's tokenizer: the core's words and merges, and the ids of open_clip and transformers."""

from __future__ import annotations

import copy
import csv
import gzip
import html
import json
import pickle
import random
import string
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_tokenizers import open_clip_tokenizer, transformers_tokenizer
from plain_bpe import PlainTokenizer, learn_merges

from placket.data import garments
from placket.text import Prompts, Tokenizer

SENTENCES = 10_000

ODD = (
    "",
    " \t\r\n\x0b\x0c\x85\xa0\u2003\u2029\u3000 ",
    "A Dress",
    "don't we're I've I'm she'll he'd it's 'Tis '\u017fie ''s '''s",
    "<start_of_text> <END_OF_TEXT> <\u017ftart_of_text> <|endoftext|> !<end_of_text>",
    "H&M &amp; &amp;amp; &lt;b&gt; &lt;3 &copy 5 &#233; &#xD800; &nbsp;x &notit; &hellip",
    "price: $1,299.50!! 100% \u00bd \u2167 \u0664\u0662 \u4e00\u4e8c 3\ufe0f\u20e3",
    "e\u0301 n\u0303 \u0301 a\u0345a\u0345 !\u0345!",
    "a\u0308\u0323 \u1e69 s\u0323\u0307 \u0915\u094d\u0937\u093f \u0e01\u0e33",
    "\U0001f457\U0001f45a \U0001f469\U0001f3fd\u200d\U0001f4bb \U0001f1e9\U0001f1ea \u2764\ufe0f",
    "\uff21\uff22\uff23 \uff11\uff12 \uff01 \u30c9\u30ec\u30b9 \uff84\uff9e\uff9a\uff7d",
    "\u039f\u0394\u03a5\u03a3\u03a3\u0395\u03a5\u03a3 \u03a3 \u03a3. \u0391\u03a3\u0391",
    "Stra\u00dfe STRASSE \u1e9e \u0130stanbul I\u0307 \u0131 \u01c5 \u212a \u212b \ufb01n\ufb02",
    "\u200bzero\u200bwidth\u200c\u200djoin\u2060er\ufeff so\u00adft \u180e\u061c",
    "\u201ccurly\u201d \u2018quotes\u2019 \u2014 \u2026 it\u2019s",
    "sch\u00c3\u00b6n \u00e2\u20ac\u0153mojibake\u00e2\u20ac\u009d l\u2019\u00c3\u00a9t\u00c3\u00a9",
    "\x00\x01nul\x1b[31mred\x1b[0m \x7f \x1c\x1d tab\tbed\r\nline\rend",
    "\ud83d\ude00 \ud800 lone \udcff",
    "\U00010400\U00010428 \U0001d400\U0001d7d8 \U000e0041 \U0010ffff \ufffe \u0378",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0414\u0430 \ud55c\uad6d\uc5b4",
    "x" * 300,
    "ab" * 200 + " " + "\U0001f457" * 100,
    " ".join(["word"] * 200),
)


def captions(count: int) -> list[str]:
    """Return the sentences of generated garments."""
    choice = random.Random(0)
    sizes = [len(values) for values in garments.ATTRIBUTES.values()]
    return [garments.caption([choice.randrange(size) for size in sizes]) for _ in range(count)]


@pytest.fixture(scope="module")
def merges() -> str:
    return learn_merges(captions(200), 100)


@pytest.fixture(scope="module")
def small(merges: str) -> Tokenizer:
    return Tokenizer(merges, context_length=24, clean="basic")


@pytest.fixture(scope="module")
def vocabulary(photographs: Path) -> Path:
    return photographs / "clip" / "bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture(scope="module")
def clip(vocabulary: Path) -> Tokenizer:
    return Tokenizer.load(vocabulary)


@pytest.fixture(scope="module")
def simple(vocabulary: Path) -> Any:
    return open_clip_tokenizer().SimpleTokenizer(str(vocabulary))


@pytest.fixture(scope="module")
def sentences(photographs: Path) -> list[str]:
    """Sentences of real catalogues, of prompts and of generated garments, no two alike."""
    found: dict[str, None] = {}
    with (photographs / "hm" / "articles.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found |= dict.fromkeys((row["detail_desc"], row["prod_name"], row["product_type_name"]))
    names = json.loads((photographs / "co-parsing" / "label_names.json").read_text())
    found |= dict.fromkeys(text for name in names for text in Prompts.load("en").category(name))
    found |= dict.fromkeys(captions(4 * SENTENCES))
    assert len(found) >= SENTENCES
    return list(found)[:SENTENCES]


# The core, with a vocabulary that is learnt here


def test_ids_are_those_of_plain_python(small: Tokenizer, merges: str) -> None:
    texts = [
        *captions(50),
        *(html.unescape(html.unescape(text)).lower() for text in ODD if text.isprintable()),
    ]
    plain = PlainTokenizer(merges)
    assert [small.encode(text) for text in texts] == [plain.encode(text) for text in texts]
    for length in (1, 2, 3, 24, 90):
        assert small(texts, length).tolist() == plain.rows(texts, length)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.one_of(st.sampled_from("abest '<>_\u017f12 "), st.characters(exclude_categories=["Cs"])))
)
def test_any_text_has_the_ids_of_plain_python(small: Tokenizer, merges: str, text: str) -> None:
    text = "".join(
        c for c in text if unicodedata.category(c) != "Cn" and c not in "&\x1c\x1d\x1e\x1f"
    ).lower()
    assert small.encode(text) == PlainTokenizer(merges).encode(text)


def test_a_long_word_has_the_ids_of_plain_python(small: Tokenizer, merges: str) -> None:
    choice, plain = random.Random(1), PlainTokenizer(merges)
    for letters in ("a", "es", "ste", "atedolsn", string.ascii_lowercase):
        for length in (2, 3, 4, 5, 17, 64, 401):
            word = "".join(choice.choice(letters) for _ in range(length))
            assert small.encode(word) == plain.encode(word)


def test_ten_megabytes_are_cut_in_time(small: Tokenizer) -> None:
    """Merging by one scan of the word for each merge would take days."""
    size = 10_000_000
    word = "sleevess" * (size // 8)
    ids, few = small.encode(word), small.encode(word[:8000])
    assert small.decode(ids) == word
    assert ids[: len(few) - 10] == few[:-10]
    for text in (f"{captions(1)[0]} ", "x", "\U0001f457 "):
        row = small(text * (size // len(text)))[0].tolist()
        assert row == small(text * 100)[0].tolist()


def test_ids_depend_on_no_thread(small: Tokenizer) -> None:
    texts = [*captions(500), *ODD]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = small(texts)
        torch.set_num_threads(4)
        assert torch.equal(small(texts), alone)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat([small(text) for text in texts]), alone)


def test_rows_are_int64_with_start_end_and_zeros(small: Tokenizer) -> None:
    rows = small(["", "a shirt", "sleeve " * 40])
    assert (rows.dtype, rows.shape) == (torch.int64, (3, 24))
    assert rows[0].tolist() == [small.start, small.end] + [0] * 22
    assert (rows[2, 0], rows[2, -1]) == (small.start, small.end)
    assert small.end == len(small) - 1 == small.start + 1
    assert small([]).shape == (0, 24)
    assert small("a shirt").tolist() == [rows[1].tolist()]
    assert small(text for text in ("", "a shirt")).tolist() == rows[:2].tolist()


def test_invalid_utf8_is_the_replacement_character(small: Tokenizer) -> None:
    given = b"a \xff\xc3 \xed\xa0\x80 shirt"
    assert small.encode(given) == small.encode(given.decode("utf-8", "replace"))
    assert small.encode("a \udcff shirt") == small.encode("a \ufffd shirt")
    assert small._native.encode("a \ufffd") == small.encode(b"a \xff")


def test_words_are_decoded(small: Tokenizer) -> None:
    text = "a short-sleeved striped top with buttons"
    assert small.decode(small(text)[0]) == "a short - sleeved striped top with buttons"
    assert small.decode(small.encode("stra\u00dfe \U0001f457!")) == "stra\u00dfe \U0001f457!"
    assert small.decode(small.encode("\U0001f457")[:2]) == "\ufffd"
    assert small.decode([]) == ""
    with pytest.raises(IndexError, match=rf"^decode: id must be in \[0, {len(small)}\), got {len(small)}$"):
        small.decode([len(small)])
    with pytest.raises(IndexError, match="got -1"):
        small.decode([-1])


def test_letters_and_numbers_are_those_of_unicode() -> None:
    """By the words that are cut; characters that this Python's older Unicode does not know are left out."""
    bytes_alone = Tokenizer("", clean="basic")
    points = [
        point
        for point in range(sys.maxunicode + 1)
        if unicodedata.category(chr(point)) not in ("Cn", "Cs") and chr(point).lower() == chr(point)
    ]
    categories = [unicodedata.category(chr(point))[0] for point in points]

    def words(texts: Iterable[str]) -> list[int]:
        ids = bytes_alone._native.encode_rows(tuple(texts), 12)
        return ((ids >= 256) & (ids < 512)).sum(1).tolist()  # bytes that end a word

    between = words(f"a{chr(point)}a" for point in points)
    doubled = words(2 * chr(point) for point in points)
    for point, category, alone, twice in zip(points, categories, between, doubled, strict=True):
        is_space = (chr(point).isspace() and point not in range(0x1C, 0x20)) or point == 0x345
        wanted = {"L": (1, 1), "N": (3, 2)}.get(category, (2, 0) if is_space else (3, 1))
        assert (alone, twice) == wanted, hex(point)


@pytest.mark.slow
def test_letters_and_numbers_are_those_of_regex() -> None:
    """The words of every character, those of the newest Unicode too."""
    regex = pytest.importorskip("regex")
    pattern = regex.compile(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE)
    characters = [chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point < 0xE000]
    texts = tuple(f"a{c}a {c}{c}" for c in characters if c not in "'<")
    ids = Tokenizer("", clean="basic")._native.encode_rows(texts, 24)
    found = ((ids >= 256) & (ids < 512)).sum(1).tolist()
    assert found == [len(pattern.findall(text)) for text in texts]


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ("a b c", "merge 1 must be two tokens that are there before, got 'a b c'"),
        ("a b\nab", "merge 2 must be two tokens that are there before, got 'ab'"),
        ("a b\n\nab c", "merge 2 must be two tokens that are there before, got ''"),
        ("a bc\nb c", "merge 1 must be two tokens that are there before, got 'a bc'"),
        ("a b\nb c\na bc\nab c", "merge 4 must give a token of its own, got 'ab c', which id 514 is already"),
        ("a b\na b", "merge 2 must give a token of its own, got 'a b', which id 512 is already"),
    ],
)
def test_a_bad_merge_is_named(merges: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"BpeTokenizer: {message}"):
        Tokenizer(merges)


def test_a_bad_setting_or_text_is_named(merges: str, small: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"^Tokenizer: context_length must be a number from 1 on, got 0$"):
        Tokenizer(merges, context_length=0)
    with pytest.raises(ValueError, match="clean must be one of ftfy, basic, got 'lower'"):
        Tokenizer(merges, clean="lower")
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        small("a", context_length=0)
    with pytest.raises(TypeError, match="a text must be a str or bytes, got 5"):
        small(["a", 5])


# Files


def test_a_saved_tokenizer_is_the_same(small: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.txt.gz"
    small.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer.txt.gz"]
    read = Tokenizer.load(path)
    assert (read.context_length, read.clean, len(read)) == (24, "basic", len(small))
    assert read.to_bytes() == small.to_bytes() == path.read_bytes()
    assert torch.equal(read(list(ODD)), small(list(ODD)))
    assert Tokenizer.load(path, context_length=5, clean="ftfy")("a b").shape == (1, 5)
    for same in (pickle.loads(pickle.dumps(small)), copy.deepcopy(small)):
        assert torch.equal(same(captions(5)), small(captions(5)))
    assert repr(small) == f"Tokenizer({len(small)} tokens, context_length=24, clean='basic')"


def test_a_plain_file_is_read_as_a_packed_one(merges: str, tmp_path: Path) -> None:
    for end in ("", "\n"):
        text = f"#version: 0.2\n{merges}{end}"
        (tmp_path / "merges.txt").write_text(text, encoding="utf-8")
        (tmp_path / "merges.txt.gz").write_bytes(gzip.compress(text.encode()))
        for name in ("merges.txt", "merges.txt.gz"):
            assert Tokenizer.load(tmp_path / name).to_bytes() == Tokenizer(merges).to_bytes()


def test_a_damaged_file_is_refused(small: Tokenizer, tmp_path: Path) -> None:
    whole = small.to_bytes()
    path = tmp_path / "tokenizer.txt.gz"
    for damaged in (whole[:-20], whole[:100] + b"\0" + whole[101:], b"\xff\xfe", b"", b"#version: 0.2\n"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"^Tokenizer: a vocabulary must .*, got .* \(in .*\.txt\.gz\)$"):
            Tokenizer.load(path)
    heading, _, merges = gzip.decompress(whole).decode().partition("\n")
    shorter = merges.rpartition("\n")[0]
    with pytest.raises(ValueError, match=r"merges must have the checksum '\w{64}' that was saved, got '"):
        Tokenizer.from_bytes(f"{heading}\n{shorter}".encode())
    with pytest.raises(ValueError, match="format must be placket-tokenizer/1, got 'x'"):
        Tokenizer.from_bytes(b'{"format": "x"}\na b')
    with pytest.raises(ValueError, match="the first line must be JSON, got"):
        Tokenizer.from_bytes(b"{\na b")
    with pytest.raises(FileNotFoundError, match=f"'{tmp_path}/none' must be a vocabulary file, got none"):
        Tokenizer.load(tmp_path / "none")


# Cleaning


def test_without_ftfy_no_id_differs_in_silence(merges: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, basic = Tokenizer(merges), Tokenizer(merges, clean="basic")
    monkeypatch.setitem(sys.modules, "ftfy", None)
    for text in ("A plain Dress, from H&M", "50% &copy", "line\r\nline\ttab; end", "", "   "):
        assert tokenizer.encode(text) == basic.encode(text)
    for text in ("caf\u00e9", "&eacute;", "\x1b[0m", "\ufb01n"):
        with pytest.raises(ModuleNotFoundError, match=r"printable ASCII without entities .* install ftfy"):
            tokenizer(["plain", text])
        assert basic.encode(text)


_PLAIN = st.text(st.characters(min_codepoint=9, max_codepoint=126, exclude_characters="\x0b\x0c;"))


@settings(max_examples=500, deadline=None)
@given(text=_PLAIN.map(lambda text: "".join(c for c in text if c >= " " or c in "\t\n\r")))
def test_ftfy_changes_no_plain_text(text: str) -> None:
    """But for line breaks, which part words as any white space does."""
    ftfy = pytest.importorskip("ftfy")
    assert ftfy.fix_text(text).split() == text.split()


# With CLIP's vocabulary


@pytest.mark.data
def test_known_ids(clip: Tokenizer) -> None:
    """The example of OpenAI's and open_clip's documentation."""
    row = clip("a diagram")[0]
    assert row[:5].tolist() == [49406, 320, 22697, 49407, 0]
    assert (len(clip), clip.start, clip.end, row.shape) == (49408, 49406, 49407, (77,))


@pytest.mark.data
def test_ids_are_those_of_open_clip(clip: Tokenizer, simple: Any, sentences: list[str]) -> None:
    wanted = simple(sentences)
    assert torch.equal(clip(sentences), wanted)
    assert (wanted[:, -1] == clip.end).sum() > 20  # so many are cut
    for length in (1, 2, 16, 200):
        assert torch.equal(clip(sentences[:500], length), simple(sentences[:500], length))


@pytest.mark.data
def test_ids_of_odd_texts_are_those_of_open_clip(clip: Tokenizer, simple: Any) -> None:
    for text in ODD:
        assert clip.encode(text) == simple.encode(text), ascii(text)
    for length in (1, 2, 5, 77, 300):
        assert torch.equal(clip(ODD, length), simple(list(ODD), length))


@pytest.mark.data
@settings(max_examples=300, deadline=None)
@given(text=st.text(st.one_of(st.sampled_from("aest' &;<>_\u017f1#\u2019\u00c3\u00a9 \n"), st.characters())))
def test_ids_of_any_text_are_those_of_open_clip(clip: Tokenizer, simple: Any, text: str) -> None:
    assert clip.encode(text) == simple.encode(text)


@pytest.mark.data
def test_basic_ids_are_those_of_open_clip_where_ftfy_changes_nothing(
    vocabulary: Path, simple: Any, sentences: list[str]
) -> None:
    from ftfy import fix_text

    basic = Tokenizer.load(vocabulary, clean="basic")
    same = [text for text in (*sentences, *ODD) if fix_text(text) == text]
    assert SENTENCES > len(same) > SENTENCES // 2
    assert torch.equal(basic(same), simple(same))


@pytest.mark.data
def test_words_are_decoded_as_by_open_clip(clip: Tokenizer, simple: Any, sentences: list[str]) -> None:
    for text in sentences[:200]:
        ids = clip.encode(text)
        assert clip.decode(ids) == simple.decode(ids).removesuffix(" ")


@pytest.mark.data
def test_open_clip_reads_a_saved_tokenizer(clip: Tokenizer, simple: Any, tmp_path: Path) -> None:
    clip.save(tmp_path / "tokenizer.txt.gz")
    read = open_clip_tokenizer().SimpleTokenizer(str(tmp_path / "tokenizer.txt.gz"))
    assert read.encoder == simple.encoder
    assert read.bpe_ranks == simple.bpe_ranks


@pytest.mark.data
def test_ids_are_those_of_transformers(
    vocabulary: Path, clip: Tokenizer, simple: Any, sentences: list[str]
) -> None:
    """Up to the end; where a text is neither mended nor unescaped, which transformers does not."""
    from ftfy import fix_text

    peer = transformers_tokenizer(vocabulary, simple)
    texts = [text for text in sentences if fix_text(text) == text == html.unescape(text)]
    assert len(texts) > SENTENCES // 2
    theirs = peer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    rows = clip(texts)
    assert torch.equal(rows, theirs.input_ids.where(theirs.attention_mask == 1, 0))
