"""What is said of garments, as templates in a file that a person can read and translate."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

__all__ = ["Prompts"]

_SHIPPED = Path(__file__).parents[1] / "recipes" / "prompts"
_KEYS = ("language", "garment", "forms", "words", "category", "attribute", "attributes", "replace")


@dataclass(frozen=True)
class Prompts:
    """The sentences of one language for categories, attributes and their changes.

    Each method returns the ways that the file has to say the same, the usual one first: one to train with, or
    all, whose embeddings are averaged. Names are those of the data set; where the file's "words" have another
    for them, that is said. ``recipes/prompts/en.yaml`` explains the file.
    """

    language: str
    garment: str
    """What a garment is called whose category is not known."""
    words: Mapping[str, str]
    """What names of the data set are called."""
    categories: tuple[_Template, ...]
    any_attribute: tuple[_Template, ...]
    """For attributes that have no templates of their own."""
    attributes: Mapping[str, tuple[_Template, ...]]
    replacements: tuple[_Template, ...]
    source: str
    """The file's content, of which ``Prompts.of`` makes the same again."""

    @staticmethod
    def load(name_or_path: str | os.PathLike[str] = "en") -> Prompts:
        """Read a file, or a shipped language by its name.

        Raises:
            FileNotFoundError: neither is there; the text lists the shipped ones.
            ValueError: a key is unknown or missing, or a template wrong; the text names file and line.
        """
        file = Path(name_or_path)
        shipped = _SHIPPED / f"{name_or_path}.yaml"
        if not file.is_file() and file.name == str(name_or_path) and shipped.is_file():
            file = shipped
        if not file.is_file():
            known = ", ".join(sorted(path.stem for path in _SHIPPED.glob("*.yaml")))
            raise FileNotFoundError(
                f"prompts: '{name_or_path}' must be a file or a shipped language ({known}), got neither"
            )
        return _read(file.read_bytes(), str(file))

    @staticmethod
    def of(source: str) -> Prompts:
        """Make prompts of a file's content.

        Raises:
            ValueError: as ``load``.
        """
        return _read(source.encode(), "prompts")

    def category(self, name: str) -> tuple[str, ...]:
        """Say that a garment of a category is shown."""
        return self._say(self.categories, category=name)

    def attribute(self, name: str, value: str, category: str | None = None) -> tuple[str, ...]:
        """Say that a garment, of a category where that is known, has a value of an attribute."""
        category = self.garment if category is None else category
        templates = self.attributes.get(name, self.any_attribute)
        return self._say(templates, attribute=name, value=value, category=category)

    def replace(self, attribute: str, old: str, new: str) -> tuple[str, ...]:
        """Say that a garment shall have another value of an attribute than the one shown."""
        return self._say(self.replacements, attribute=attribute, old=old, new=new)

    def _say(self, templates: Sequence[_Template], **names: str) -> tuple[str, ...]:
        for key, name in names.items():
            if not name.strip():
                raise ValueError(f"prompts: {key} must be a word, got {name!r}")
        said = {key: self.words.get(name, name) for key, name in names.items()}
        return tuple(template.fill(said) for template in templates)


@dataclass(frozen=True)
class _Form:
    """How a phrase is put into a grammatical form: the first expression that is all of it says how."""

    rules: tuple[tuple[re.Pattern[str], str], ...]

    def of(self, phrase: str) -> str:
        for pattern, form in self.rules:
            if pattern.fullmatch(phrase):
                return form.replace("{}", phrase)
        raise AssertionError("the last rule is for any phrase")


@dataclass(frozen=True)
class _Slot:
    """A placeholder: the names that stand in it, and their form."""

    names: tuple[str, ...]
    form: _Form | None


@dataclass(frozen=True)
class _Template:
    parts: tuple[str | _Slot, ...]

    def fill(self, words: Mapping[str, str]) -> str:
        return "".join(part if isinstance(part, str) else _fill(part, words) for part in self.parts)


def _fill(slot: _Slot, words: Mapping[str, str]) -> str:
    phrase = " ".join(words[name] for name in slot.names)
    return phrase if slot.form is None else slot.form.of(phrase)


# Reading: nodes know their line.


def _read(content: bytes, path: str) -> Prompts:
    try:
        source = content.decode("utf-8")
        root = yaml.compose(source, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: file must be YAML in UTF-8, got {' '.join(str(error).split())}") from error
    if root is None:
        raise ValueError(f"{path}: file must have the keys {', '.join(_KEYS)}, got nothing")
    reader = _Reader(path)
    keys = dict(reader.mapping(root, "file", _KEYS))
    for key in _KEYS:
        if key not in keys:
            raise reader.error(root, f"file must have the key '{key}', got {', '.join(keys)}")
    forms = {name: reader.form(node, name) for name, node in reader.mapping(keys["forms"], "forms")}

    def templates(node: yaml.Node, needed: Sequence[str], others: Sequence[str]) -> tuple[_Template, ...]:
        return tuple(reader.template(item, needed, others, forms) for item in reader.sequence(node))

    of_attribute = ("value",), ("attribute", "category")
    own = reader.mapping(keys["attributes"], "attributes")
    return Prompts(
        language=reader.text(keys["language"]),
        garment=reader.text(keys["garment"]),
        words={name: reader.text(node) for name, node in reader.mapping(keys["words"], "words")},
        categories=templates(keys["category"], ("category",), ()),
        any_attribute=templates(keys["attribute"], *of_attribute),
        attributes={name: templates(node, *of_attribute) for name, node in own},
        replacements=templates(keys["replace"], ("old", "new"), ("attribute",)),
        source=source,
    )


@dataclass(frozen=True)
class _Reader:
    path: str

    def error(self, node: yaml.Node, message: str) -> ValueError:
        return ValueError(f"{self.path}:{node.start_mark.line + 1}: {message}")

    def text(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value.strip():
            raise self.error(node, f"entry must be a text, got {_shown(node)}")
        return str(node.value)

    def mapping(
        self, node: yaml.Node, what: str, known: Sequence[str] | None = None
    ) -> Iterator[tuple[str, yaml.Node]]:
        """Yield the keys of a mapping, each once, and their nodes."""
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, f"{what} must be a mapping, got {_shown(node)}")
        seen: set[str] = set()
        for key_node, value in node.value:
            key = self.text(key_node)
            if key in seen:
                raise self.error(key_node, f"{what} must have each key once, got '{key}' again")
            if known is not None and key not in known:
                closest = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
                raise self.error(
                    key_node,
                    f"key must be one of {', '.join(known)}, got '{key}'; closest is '{closest}'",
                )
            seen.add(key)
            yield key, value

    def sequence(self, node: yaml.Node) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            raise self.error(node, f"entry must be a list of one template or more, got {_shown(node)}")
        return list(node.value)

    def form(self, node: yaml.Node, name: str) -> _Form:
        rules = []
        expression = ""
        for expression, form_node in self.mapping(node, f"form '{name}'"):
            form = self.text(form_node)
            if form.count("{}") != 1:
                raise self.error(form_node, f"form must have {{}} once, for the phrase, got '{form}'")
            try:
                rules.append((re.compile(expression, re.IGNORECASE | re.DOTALL), form))
            except re.error as error:
                raise self.error(
                    form_node, f"'{expression}' must be a regular expression, got {error}"
                ) from error
        if expression != ".*":
            raise self.error(
                node, f"form '{name}' must end with '.*', for any phrase, got '{expression}' last"
            )
        return _Form(tuple(rules))

    def template(
        self, node: yaml.Node, needed: Sequence[str], others: Sequence[str], forms: Mapping[str, _Form]
    ) -> _Template:
        text = self.text(node)
        parts: list[str | _Slot] = []
        used: set[str] = set()
        for i, part in enumerate(re.split(r"\{([^{}]*)\}", text)):
            if i % 2 == 0:
                if "{" in part or "}" in part:
                    raise self.error(node, f"braces must be in pairs around a name, got '{text}'")
                parts.append(part)
                continue
            names, colon, form = part.partition(":")
            for name in names.split() or [""]:
                if name not in (*needed, *others):
                    known = ", ".join(f"{{{known}}}" for known in (*needed, *others))
                    raise self.error(node, f"placeholder must be of {known}, got '{{{part}}}' in '{text}'")
            if colon and form not in forms:
                known = ", ".join(forms) or "none"
                raise self.error(node, f"form must be one of {known}, got '{form}' in '{text}'")
            used.update(names.split())
            parts.append(_Slot(tuple(names.split()), forms[form] if colon else None))
        for name in needed:
            if name not in used:
                raise self.error(node, f"template must have {{{name}}}, got '{text}'")
        return _Template(tuple(parts))


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"'{node.value}'"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
