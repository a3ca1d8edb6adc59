"""The tokenizer of CLIP: a person's text to the numbers that a text tower takes."""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from placket import _C
from placket.checkpoint import replace_file

__all__ = ["Cleaning", "Tokenizer"]

Cleaning = Literal["ftfy", "basic"]

_CLEANINGS: tuple[Cleaning, ...] = ("ftfy", "basic")
_FORMAT = "placket-tokenizer/1"
_GZIP = b"\x1f\x8b"
# CLIP's vocabulary file goes on after the merges that CLIP has: its 49,408 tokens are 256 bytes, the same at
# the end of a word, these, start and end.
_MERGES = 49408 - 2 * 256 - 2
_SURROGATES = re.compile("[\ud800-\udfff]")
_PRINTED = re.compile(r"[\t\n\r -~]*")


class Tokenizer:
    """CLIP's byte-pair tokenizer (Radford et al., ICML 2021): the ids of open_clip's ``SimpleTokenizer``.

    A text is mended, HTML entities are unescaped twice, and letters made lower case by ``str.lower`` (which
    knows the final sigma, and makes two characters of a Turkish dotted I); the C++ core cuts what comes out
    into words and pairs of bytes. How a text is mended is a setting:

    - "ftfy", as open_clip and OpenAI do: by ``ftfy.fix_text`` (wrongly decoded text, curly quotes, full-width
      letters, ligatures, control characters; NFC). It changes no text of printable ASCII and line breaks
      without an entity; for any other the library must be installed (``pip install "placket[text]"``), and
      without it such a text is an error, so that ids never differ in silence.
    - "basic": not at all, and without the library. Ids are open_clip's where ftfy would change nothing.

    A lone surrogate, with which Python marks a byte that is no UTF-8, becomes U+FFFD. Texts may also be
    bytes, in which whatever is no UTF-8 does. A text that is empty or all white space has no ids but start
    and end. The words ``<start_of_text>`` and ``<end_of_text>`` in a text are start and end, as in open_clip:
    CLIP reads no further than the first end.

    Hugging Face's ``CLIPTokenizer`` has the same ids up to the end for text that needs no mending and no
    unescaping; it pads with the end where OpenAI and open_clip pad with 0.

    Attributes:
        context_length: of a row of ids; 77 for all models of CLIP.
        clean: "ftfy" or "basic".
    """

    def __init__(self, merges: str, context_length: int = 77, clean: Cleaning = "ftfy") -> None:
        """Take merges as a vocabulary file has them, after its first line.

        Raises:
            ValueError: a line is no merge of two tokens that are there before it, or a setting is none.
        """
        if not isinstance(context_length, int) or context_length < 1:
            raise ValueError(f"Tokenizer: context_length must be a number from 1 on, got {context_length!r}")
        if clean not in _CLEANINGS:
            raise ValueError(f"Tokenizer: clean must be one of {', '.join(_CLEANINGS)}, got {clean!r}")
        self.context_length = context_length
        self.clean: Cleaning = clean
        self._merges = merges
        self._native = _C.BpeTokenizer(merges)

    @staticmethod
    def load(
        path: str | os.PathLike[str], *, context_length: int | None = None, clean: Cleaning | None = None
    ) -> Tokenizer:
        """Read a vocabulary file, plain or gzip; see ``from_bytes``.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is no vocabulary, or not whole.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"Tokenizer: '{path}' must be a vocabulary file, got none")
        try:
            return Tokenizer.from_bytes(file.read_bytes(), context_length=context_length, clean=clean)
        except ValueError as error:
            raise ValueError(f"{error} (in {path})") from error

    @staticmethod
    def from_bytes(
        data: bytes, *, context_length: int | None = None, clean: Cleaning | None = None
    ) -> Tokenizer:
        """Make a tokenizer of what ``to_bytes`` gave, or of another vocabulary file's content.

        Others are CLIP's ``bpe_simple_vocab_16e6.txt.gz`` and Hugging Face's ``merges.txt``: a line of any
        text, then a merge a line, of which the first 48,894 count.

        Args:
            data: plain or gzip.
            context_length, clean: instead of those that were saved, or of 77 and "ftfy".

        Raises:
            ValueError: it is no vocabulary, or not whole.
        """
        try:
            text = (gzip.decompress(data) if data.startswith(_GZIP) else data).decode("utf-8")
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise ValueError(
                f"Tokenizer: a vocabulary must be text in UTF-8, plain or gzip, got {error}"
            ) from error
        heading, _, merges = text.partition("\n")
        settings: dict[str, Any] = {}
        if heading.startswith("{"):
            settings = _settings(heading, merges)
        else:
            merges = "\n".join(merges.split("\n", _MERGES)[:_MERGES]).removesuffix("\n")
        if not merges:
            raise ValueError("Tokenizer: a vocabulary must have a line of heading, then merges, got no merge")
        return Tokenizer(
            merges,
            settings.get("context_length", 77) if context_length is None else context_length,
            settings.get("clean", "ftfy") if clean is None else clean,
        )

    def to_bytes(self) -> bytes:
        """Return vocabulary and settings with a checksum, gzip; a file of them is one for open_clip too."""
        heading = {
            "format": _FORMAT,
            "context_length": self.context_length,
            "clean": self.clean,
            "sha256": hashlib.sha256(self._merges.encode()).hexdigest(),
        }
        return gzip.compress(f"{json.dumps(heading)}\n{self._merges}".encode(), mtime=0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_bytes`` beside the path and rename it when it is whole."""
        replace_file(Path(path), self.to_bytes())

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[str, int, Cleaning]]:
        return Tokenizer, (self._merges, self.context_length, self.clean)

    def __repr__(self) -> str:
        return f"Tokenizer({len(self)} tokens, context_length={self.context_length}, clean='{self.clean}')"

    def __len__(self) -> int:
        """The number of tokens, start and end among them: 49,408 of CLIP."""
        return self._native.size

    @property
    def start(self) -> int:
        """The id that begins a text."""
        return self._native.start

    @property
    def end(self) -> int:
        """The id that ends a text, the highest, which is how CLIP finds it."""
        return self._native.end

    def __call__(
        self, texts: str | bytes | Iterable[str | bytes], context_length: int | None = None
    ) -> Tensor:
        """Return the ids of texts, [N, context_length] int64: start, words, end, zeros.

        Of a text that is longer the beginning is kept, and the last id is the end.

        Args:
            texts: N of them, or one.
            context_length: instead of the tokenizer's.

        Raises:
            ModuleNotFoundError: a text needs ftfy, which is not installed.
        """
        several = [texts] if isinstance(texts, (str, bytes)) else texts
        length = self.context_length if context_length is None else context_length
        return self._native.encode_rows(tuple(self._cleaned(text) for text in several), length)

    def encode(self, text: str | bytes) -> list[int]:
        """Return all ids of a text, without start and end.

        Raises:
            ModuleNotFoundError: the text needs ftfy, which is not installed.
        """
        return self._native.encode(self._cleaned(text))

    def decode(self, ids: Tensor | Iterable[int]) -> str:
        """Return the words that ids stand for, from after the start to the end, with a space between them.

        Raises:
            IndexError: a number is no id.
        """
        given = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if self.end in given:
            given = given[: given.index(self.end)]
        native = self._native.decode([number for number in given if number != self.start])
        return native.decode("utf-8", "replace").removesuffix(" ")

    def _cleaned(self, text: str | bytes) -> str:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        elif not isinstance(text, str):
            raise TypeError(f"Tokenizer: a text must be a str or bytes, got {text!r}")
        if _PRINTED.fullmatch(text) is None or ("&" in text and ";" in text):
            text = _mend_by_ftfy(text) if self.clean == "ftfy" else _mend_plainly(text)
        return html.unescape(html.unescape(text)).lower()


def _mend_by_ftfy(text: str) -> str:
    try:
        from ftfy import fix_text
    except ModuleNotFoundError as error:
        shown = ascii(text if len(text) <= 40 else f"{text[:40]}...")
        raise ModuleNotFoundError(
            "Tokenizer: text must be printable ASCII without entities where ftfy is not installed, got "
            f"{shown}; pip install ftfy, or choose clean='basic', whose ids differ where ftfy mends"
        ) from error
    mended: str = fix_text(text)
    return mended


def _mend_plainly(text: str) -> str:
    # What str.split parts words at is more than the core's white space.
    return " ".join(_SURROGATES.sub("\ufffd", text).split())


def _settings(heading: str, merges: str) -> dict[str, Any]:
    """Return the settings of a saved tokenizer, of these merges."""
    try:
        saved = json.loads(heading)
    except ValueError as error:
        raise ValueError(f"Tokenizer: the first line must be JSON, got {error}") from error
    if saved.get("format") != _FORMAT:
        raise ValueError(f"Tokenizer: format must be {_FORMAT}, got {saved.get('format')!r}")
    found = hashlib.sha256(merges.encode()).hexdigest()
    if saved.get("sha256") != found:
        raise ValueError(
            f"Tokenizer: merges must have the checksum {saved.get('sha256')!r} that was saved, got {found!r}"
        )
    return {key: saved[key] for key in ("context_length", "clean") if key in saved}
