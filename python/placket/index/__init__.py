"""Search in named attribute spaces: build, save, load, and ask by one or several weighted attributes."""

from __future__ import annotations

from placket.index.attribute_index import AttributeIndex, Hit
from placket.index.build import add_images, build, extend, search_image, search_text
from placket.index.engines import ENGINES, Engine, Item
from placket.index.model import load_model
from placket.index.where import Expression, parse

__all__ = [
    "ENGINES",
    "AttributeIndex",
    "Engine",
    "Expression",
    "Hit",
    "Item",
    "add_images",
    "build",
    "extend",
    "load_model",
    "parse",
    "search_image",
    "search_text",
]
