"""What an event is, in Fibratus's categories and in a sentence."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final

UNKNOWN: Final = "unknown"
"""The category of an event that has none."""

_CATEGORIES: Final = {"memory": "mem", "network": "net"}
_IMAGES: Final = frozenset({"EnumImage", "LoadImage", "UnloadImage"})
"""Events of modules by their names in Fibratus 1.x, where the category is ``image``."""


def fibratus_category(event: str, category: str) -> str:
    """Spell a category as Fibratus does, in the release that has the event.

    Args:
        event: The event's own name.
        category: kcap's category, empty for none.

    Returns:
        ``file``, ``net``, ``image`` …
    """
    if event in _IMAGES:
        return "image"
    return _CATEGORIES.get(category, category) or UNKNOWN


def description(event: str, action: str) -> str:
    """Say what an event is.

    Args:
        event: The event's own name.
        action: Its action in kcap's taxonomy, empty for none.

    Returns:
        A sentence without a full stop; empty where nothing is known of either.
    """
    known = _descriptions()
    return known.get(("event", event)) or known.get(("action", action)) or ""


@cache
def _descriptions() -> dict[tuple[str, str], str]:
    text = resources.files("kcap.filament").joinpath("descriptions.tsv").read_text("utf-8")
    rows = (line.split("\t") for line in text.splitlines()[1:])
    return {(of, name): what for of, name, what in rows}
