from __future__ import annotations

from pathlib import Path

import pytest

from placket.data import garments
from placket.text import Prompts

SMALL = """\
language: Pig Latin
garment: armentgay
forms:
  a:
    '[aeiou].*|.*s': 'an {}!'
    '.*': 'a {}'
words: {dress: essdray, no: onay}
category:
  - one {category:a}
  - '{category}'
attribute: ['{category} {attribute}={value}']
attributes:
  colour:
    - '{value category:a}'
replace:
  - '{attribute}: {old} {new:a}'
"""


def small(folder: Path, text: str = SMALL) -> Path:
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_english_has_the_customary_prompts() -> None:
    prompts = Prompts.load("en")
    assert prompts == Prompts.load()
    assert prompts.language == "English"
    assert prompts.category("dress")[0] == "a photo of a dress"
    assert prompts.attribute("neckline", "v", "dress")[0] == "a dress with v neckline"
    assert prompts.attribute("neckline", "v")[0] == "a garment with v neckline"
    assert prompts.attribute("colour", "orange", "dress")[0] == "an orange dress"
    assert prompts.replace("colour", "red", "blue")[0] == "replace red with blue"


@pytest.mark.parametrize(
    ("category", "said"),
    [
        ("anorak", "an anorak"),
        ("A-line skirt", "an A-line skirt"),
        ("uniform", "a uniform"),
        ("unisex shirt", "a unisex shirt"),
        ("unlined coat", "an unlined coat"),
        ("one-piece", "a one-piece"),
        ("hourglass dress", "an hourglass dress"),
        ("dress", "a dress"),
        ("jeans", "jeans"),
        ("Trousers", "Trousers"),
        ("sunglasses", "sunglasses"),
        ("swimwear", "swimwear"),
        ("hair", "hair"),
    ],
)
def test_english_articles(category: str, said: str) -> None:
    assert Prompts.load("en").category(category)[0] == f"a photo of {said}"


def test_german_says_the_same() -> None:
    prompts = Prompts.load("de")
    assert prompts.category("dress")[0] == "ein Foto von einem Kleid"
    assert prompts.category("jacket")[0] == "ein Foto von einer Jacke"
    assert prompts.category("shoes")[0] == "ein Foto von Schuhen"
    assert prompts.category("jeans")[0] == "ein Foto von Jeans"
    assert prompts.attribute("neckline", "round", "blouse")[0] == "eine Bluse, Ausschnitt rund"
    assert prompts.attribute("colour", "red", "skirt")[0] == "ein Rock in rot"
    assert prompts.replace("colour", "red", "blue")[0] == "ersetze rot durch blau"
    assert prompts.category("poncho")[0] == "ein Foto von einem poncho"  # no word for it: as it is


@pytest.mark.parametrize("language", ["en", "de"])
def test_each_language_says_everything_in_several_ways(language: str) -> None:
    prompts = Prompts.load(language)
    said = [prompts.category("dress")]
    for name, values in garments.ATTRIBUTES.items():
        said += [prompts.attribute(name, value, category) for value in values for category in (None, "top")]
        said.append(prompts.replace(name, *values[:2]))
    for ways in said:
        assert len({*ways}) == len(ways) > 1
        assert not any("{" in way or "  " in way or way != way.strip() for way in ways)
    assert len({*said}) == len(said)


def test_a_file_is_read(tmp_path: Path) -> None:
    prompts = Prompts.load(small(tmp_path))
    assert prompts.category("dress") == ("one an essdray!", "essdray")
    assert prompts.category("COAT") == ("one a COAT", "COAT")
    assert prompts.category("Apron\nx") == ("one an Apron\nx!", "Apron\nx")
    assert prompts.attribute("hem", "no") == ("armentgay hem=onay",)
    assert prompts.attribute("colour", "{old}", "dress") == ("a {old} essdray",)
    assert prompts.replace("hem", "a", "b") == ("hem: a a b",)
    for empty in (" ", ""):
        with pytest.raises(ValueError, match=rf"^prompts: category must be a word, got '{empty}'$"):
            prompts.category(empty)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("garment: ", "garmnet: ", "2: key must be one of .*, got 'garmnet'; closest is 'garment'"),
        ("garment: armentgay\n", "", "1: file must have the key 'garment', got language, forms, words"),
        ("garment: ", "language: ", "2: file must have each key once, got 'language' again"),
        ("no: onay", "dress: onay", "7: words must have each key once, got 'dress' again"),
        ("one {category:a}", "one", r"9: template must have \{category\}, got 'one'"),
        ("{category:a}", "{category:an}", "9: form must be one of a, got 'an' in 'one {category:an}'"),
        ("'{category}'", "'{value}'", r"10: placeholder must be of \{category\}, got '\{value\}' in"),
        ("'{category}'", "'{}'", r"10: placeholder must be of \{category\}, got '\{\}' in '\{\}'"),
        ("'{category}'", "'{category'", r"10: braces must be in pairs around a name, got '\{category'"),
        ("{value category:a}", "{category}", r"14: template must have \{value\}, got '\{category\}'"),
        ("{new:a}", "", r"16: template must have \{new\}, got '\{attribute\}: \{old\} '"),
        (
            "'.*': 'a {}'",
            "'.+': 'a {}'",
            r"5: form 'a' must end with '\.\*', for any phrase, got '\.\+'",
        ),
        ("'a {}'", "'a'", r"6: form must have \{\} once, for the phrase, got 'a'"),
        ("[aeiou].*|", "[aeiou.*|", r"5: '\[aeiou\.\*\|\.\*s' must be a regular expression, got "),
        ("armentgay", "[]", "2: entry must be a text, got a list"),
        ("armentgay", "", "2: entry must be a text, got ''"),
        ("{dress: essdray, no: onay}", "x", "7: words must be a mapping, got 'x'"),
        ("['{category} {attribute}={value}']", "[]", "11: entry must be a list of one template or more"),
        ("['{category} {attribute}={value}']", "{}", "11: entry must be a list of .*, got a mapping"),
        (SMALL, "- x\n", "1: file must be a mapping, got a list"),
        (SMALL, "# nothing\n", " file must have the keys language, garment, .*, got nothing"),
        ("words: {", "words: {{", " file must be YAML in UTF-8, got "),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SMALL
    path = small(tmp_path, SMALL.replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"^{path}:{message}"):
        Prompts.load(path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = small(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=f"^{path}: file must be YAML in UTF-8, got "):
        Prompts.load(path)


def test_an_unknown_language_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"^prompts: 'fr' must be a file or a shipped language \(de, en\), got neither$",
    ):
        Prompts.load("fr")
    with pytest.raises(FileNotFoundError, match="got neither"):
        Prompts.load(tmp_path / "en")
