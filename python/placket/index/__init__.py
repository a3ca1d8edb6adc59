"""Search in named attribute spaces: build, save, load, and ask by one or several weighted attributes."""

from __future__ import annotations

from placket.index.attribute_index import AttributeIndex, Hit
from placket.index.build import build, search_image
from placket.index.engines import ENGINES, Engine

__all__ = ["ENGINES", "AttributeIndex", "Engine", "Hit", "build", "search_image"]
