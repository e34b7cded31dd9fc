"""Attribute access to dictionaries: what filaments import as ``utils.dotdict``."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any


class DotDict(dict[str, Any]):
    """A dictionary whose keys are attributes, too, and so are those of dictionaries in it.

    An attribute that it does not have is None: an event has what is known of it.

    Example:
        >>> event = DotDict({"name": "CreateFile", "kparams": {"file_name": "a.txt"}})
        >>> event.kparams.file_name
        'a.txt'
    """

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  (whatever the event has)
        if name.startswith("__"):
            raise AttributeError(name)  # what Python asks for is not asked of the event
        value = self.get(name)
        if type(value) is dict:
            value = self[name] = DotDict(value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"the event has no {name!r}") from None


def dotdictify(function: Callable[[DotDict], Any]) -> Callable[[dict[str, Any]], Any]:
    """Give a function its event as a `DotDict`.

    Args:
        function: A function of one argument, the event.

    Returns:
        The same for an ordinary dictionary.
    """

    @wraps(function)
    def given(event: dict[str, Any]) -> Any:  # noqa: ANN401
        return function(DotDict(event))

    return given
