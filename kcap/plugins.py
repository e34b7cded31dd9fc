"""Finding readers and writers: by entry points, so that the core imports none of them.

Our own come from the installed distribution, or in a checkout from the pyproject.toml beside the
package. Other distributions may add theirs; as root none of those is loaded, because a capture
must not run code that whoever may write to site-packages left there.
"""

from __future__ import annotations

import os
import tomllib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

READERS: Final = "kcap.readers"
LIVE: Final = "kcap.live"
WRITERS: Final = "kcap.writers"

_OURS: Final = "kcap"


@cache
def found(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group.

    Args:
        group: `READERS`, `LIVE` or `WRITERS`.

    Returns:
        Name to entry point, by name; our own win over others of the same name.
    """
    installed = entry_points(group=group)
    own = _checkout(group)
    if own is None:
        own = {e.name: e for e in installed if e.dist is not None and e.dist.name == _OURS}
    others: dict[str, EntryPoint] = {}
    if not _is_root():
        others = {e.name: e for e in installed if e.dist is None or e.dist.name != _OURS}
    return dict(sorted((others | own).items()))


def hidden(group: str) -> dict[str, EntryPoint]:
    """The entry points of other distributions that are not loaded as root.

    Args:
        group: `READERS`, `LIVE` or `WRITERS`.

    Returns:
        Name to entry point, by name.
    """
    known = found(group)
    return {e.name: e for e in sorted(entry_points(group=group)) if e.name not in known}


def missing(plugin: Any) -> list[str]:  # noqa: ANN401
    """The optional dependencies that a reader or writer needs and that are not installed.

    Args:
        plugin: Its class (``needs``: see `kcap.model.stream.Reader`).

    Returns:
        Names of extras.
    """
    needs: dict[str, str] = getattr(plugin, "needs", {})
    return [extra for extra, module in sorted(needs.items()) if find_spec(module) is None]


def load(group: str, name: str) -> Any:  # noqa: ANN401
    """Import what an entry point names.

    Args:
        group: `READERS`, `LIVE` or `WRITERS`.
        name: Its name, one of `found`.

    Returns:
        The object.

    Raises:
        ImportError: There is none, or it imports what is not installed.
    """
    try:
        return found(group)[name].load()
    except AttributeError as error:
        raise ImportError(str(error)) from error


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


@cache
def _checkout(group: str) -> dict[str, EntryPoint] | None:
    """Our entry points in a checkout or an editable install; None in an installed package."""
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if not project.is_file():
        return None
    with project.open("rb") as stream:
        declared = tomllib.load(stream).get("project", {})
    if declared.get("name") != _OURS:
        return None
    values = declared.get("entry-points", {}).get(group, {})
    return {name: EntryPoint(name, value, group) for name, value in values.items()}
