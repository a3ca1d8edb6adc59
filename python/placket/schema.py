"""The attributes a data set or a model knows, by name and by id."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Attribute", "AttributeSchema", "index_of", "weights_of"]


@dataclass(frozen=True)
class Attribute:
    """One attribute and the names of its values; a value's id is its place among them."""

    name: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_unique(f"values of attribute '{self.name}'", self.values)

    def index(self, value: str | int) -> int:
        """Return the id of a value given by name or id.

        Raises:
            ValueError: there is no such value; the text names the closest.
        """
        return index_of(f"schema: value of attribute '{self.name}'", self.values, value)


@dataclass(frozen=True)
class AttributeSchema:
    """The attributes in the order of their ids."""

    attributes: tuple[Attribute, ...]

    def __post_init__(self) -> None:
        if self.attributes:  # a set of identities or texts has none
            _check_unique("attributes", self.names)

    @staticmethod
    def of(attributes: Mapping[str, Sequence[str]]) -> AttributeSchema:
        """Make a schema of a mapping from attribute names to value names."""
        return AttributeSchema(tuple(Attribute(name, tuple(values)) for name, values in attributes.items()))

    def __len__(self) -> int:
        return len(self.attributes)

    def __getitem__(self, attribute: str | int) -> Attribute:
        return self.attributes[self.index(attribute)]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(attribute.name for attribute in self.attributes)

    @property
    def value_counts(self) -> tuple[int, ...]:
        """How many values each attribute has."""
        return tuple(len(attribute.values) for attribute in self.attributes)

    def index(self, attribute: str | int) -> int:
        """Return the id of an attribute given by name or id.

        Raises:
            ValueError: there is no such attribute; the text names the closest.
        """
        return index_of("schema: attribute", self.names, attribute)

    def indices(self, attributes: Iterable[str | int]) -> list[int]:
        """Return the ids of several attributes."""
        return [self.index(attribute) for attribute in attributes]

    def weights(
        self, attributes: Mapping[str, float] | Iterable[str | int] | None = None
    ) -> dict[str, float]:
        """Return the weights of attributes by name: those given, 1 where none is; of all by default.

        Raises:
            ValueError: there is no such attribute; the text names the closest.
        """
        return weights_of("schema: attribute", self.names, self.names if attributes is None else attributes)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``from_dict`` reads, ready for JSON."""
        return {"attributes": [{"name": a.name, "values": list(a.values)} for a in self.attributes]}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> AttributeSchema:
        """Make a schema of ``{"attributes": [{"name": str, "values": [str, ...]}, ...]}``.

        Raises:
            ValueError: the structure is another.
        """
        form = "{'attributes': [{'name': str, 'values': [str, ...]}, ...]}"
        try:
            attributes = tuple(
                Attribute(_string(entry["name"]), tuple(map(_string, entry["values"])))
                for entry in data["attributes"]
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"schema: data must have the form {form}, got {data!r}") from error
        return AttributeSchema(attributes)


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"schema: a name must be a string, got {value!r}")
    return value


def _check_unique(what: str, names: Sequence[str]) -> None:
    if not names:
        raise ValueError(f"schema: {what} must be at least one, got none")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"schema: {what} must have different names, got '{name}' twice")
        seen.add(name)


def index_of(what: str, names: Sequence[str], given: str | int) -> int:
    """Return the place of what is given by name or place; ``what`` begins the messages.

    Raises:
        ValueError: there is no such name; the text names the closest.
    """
    if isinstance(given, str):
        if given in names:
            return names.index(given)
        closest = difflib.get_close_matches(given, names, n=1, cutoff=0)[0]
        known = ", ".join(names) if len(names) <= 20 else f"the {len(names)} known"
        raise ValueError(f"{what} must be one of {known}, got '{given}'; closest is '{closest}'")
    if not 0 <= given < len(names):
        raise ValueError(f"{what} must be an id from 0 to {len(names) - 1}, got {given}")
    return given


def weights_of(
    what: str, names: Sequence[str], given: Mapping[str, float] | Iterable[str | int]
) -> dict[str, float]:
    """Return weights by name: those given, 1 where none is; see ``index_of``."""
    pairs = given.items() if isinstance(given, Mapping) else [(one, 1.0) for one in given]
    return {names[index_of(what, names, one)]: float(weight) for one, weight in pairs}
