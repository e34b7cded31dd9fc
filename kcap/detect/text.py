"""What alerts say: text with fields of events in it, ``%ps.exe`` or ``%2.file.path``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from kcap.detect.event import field
from kcap.filter.values import Named

_FIELD: Final = re.compile(
    r"%(?:(?P<number>[1-9][0-9]?)\.)?(?P<name>[A-Za-z_]\w*(?:\.\w+)*(?:\[[^\]\s]+\])?)|%%"
)
_MISSING: Final = "N/A"


class Place(NamedTuple):
    """Where a value stands in a text."""

    number: int | None
    """Which event of several, from 1; None for the one that the alert is raised at."""
    name: str
    """The field."""


class Text:
    """A text with places for values.

    ``%%`` is a percent sign; a percent sign before anything that is no name stays one.

    Example:
        >>> Text("%ps.name opens 100% of it").of(lambda place: "cat")
        'cat opens 100% of it'

    Args:
        template: The text.
        first: A place without a number is one of the first event, as Fibratus has it.
        era: Of its fields; None for what their names tell.

    Raises:
        FilterError: It names a field that there is not.
    """

    def __init__(self, template: str, *, first: bool = False, era: int | None = None) -> None:
        self.template = template
        self._parts: list[str | Place] = []
        at = 0
        for match in _FIELD.finditer(template):
            self._parts.append(template[at : match.start()])
            at = match.end()
            if match["name"] is None:
                self._parts.append("%")
                continue
            field(match["name"], era)  # it must be one
            number = 1 if first and match["number"] is None else match["number"]
            self._parts.append(Place(None if number is None else int(number), match["name"]))
        self._parts.append(template[at:])

    @property
    def places(self) -> list[Place]:
        """The values that it asks for, in order."""
        return [part for part in self._parts if isinstance(part, Place)]

    @property
    def fields(self) -> frozenset[str]:
        """The fields that it asks for."""
        return frozenset(place.name for place in self.places)

    def of(self, value: Callable[[Place], Any]) -> str:
        """The text with values.

        Args:
            value: Gives the value of a place.

        Returns:
            It; a missing value is ``N/A``.
        """
        return "".join(p if isinstance(p, str) else spelled(value(p)) for p in self._parts)


def spelled(value: Any) -> str:  # noqa: ANN401 - any value
    """A value of the filter language for people.

    Args:
        value: Any.

    Returns:
        Text; of a list its items.
    """
    if value is None:
        return _MISSING
    if isinstance(value, Named):
        return value.text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(map(spelled, value))
    return str(value)
