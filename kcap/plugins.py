"""Finding readers and writers: by entry points, so that the core imports none of them.

Our own come from the installed distribution, or in a checkout from the pyproject.toml beside the
package. Other distributions may add theirs; as root none of those is loaded: reading a capture
must not run what came along with some other package.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from kcap import trust
from kcap.errors import KcapError

READERS: Final = "kcap.readers"
FOLDERS: Final = "kcap.folders"
"""Readers of directories: ``sniff(path)``, and made of ``path, lenient=, events=``."""
LIVE: Final = "kcap.live"
WRITERS: Final = "kcap.writers"
SINKS: Final = "kcap.sinks"
RULES: Final = "kcap.rules"

_OURS: Final = "kcap"


@cache
def found(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group.

    Args:
        group: `READERS`, `FOLDERS`, `LIVE`, `WRITERS`, `SINKS` or `RULES`.

    Returns:
        Name to entry point, by name; our own win over others of the same name.
    """
    installed = entry_points(group=group)
    own = _checkout(group)
    if own is None:
        own = {e.name: e for e in installed if _is_ours(e)}
    others: dict[str, EntryPoint] = {}
    if not trust.is_root():
        others = {e.name: e for e in installed if not _is_ours(e)}
    return dict(sorted((others | own).items()))


def hidden(group: str) -> dict[str, EntryPoint]:
    """The entry points of other distributions that are not loaded as root.

    Args:
        group: `READERS`, `FOLDERS`, `LIVE`, `WRITERS`, `SINKS` or `RULES`.

    Returns:
        Name to entry point, by name.
    """
    known = found(group)
    return {e.name: e for e in sorted(entry_points(group=group)) if e.name not in known}


def whence(entry: EntryPoint) -> str:
    """Where the code that an entry point names comes from, without loading it.

    Args:
        entry: One of `found` or `hidden`.

    Returns:
        The distribution and its version, and the file.
    """
    if entry.dist is None:
        return entry.value
    place = Path(*entry.module.split("."))
    names = [place.with_suffix(".py"), place / "__init__.py"]
    files = [Path(str(entry.dist.locate_file(name))) for name in map(str, names)]
    file = next((file for file in files if file.is_file()), files[0].with_suffix(""))
    return f"{entry.dist.name} {entry.dist.version}, {file}"


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
        group: `READERS`, `FOLDERS`, `LIVE`, `WRITERS`, `SINKS` or `RULES`.
        name: Its name, one of `found`.

    Returns:
        The object.

    Raises:
        KcapError: It is another distribution's, and this is root.
        ImportError: There is none, or it imports what is not installed.
    """
    entry = found(group).get(name)
    if entry is None:
        other = hidden(group).get(name)
        if other is None:
            raise ImportError(f"there is no {name} in {group}")
        raise KcapError(
            f"{name} is not kcap's own, and root loads nothing else",
            file=whence(other),
            hint="as another user than root: there it is loaded",
        )
    try:
        return entry.load()
    except AttributeError as error:
        raise ImportError(str(error)) from error


def _is_ours(entry: EntryPoint) -> bool:
    """Whether it is of the distribution that this file is of, and not of one that is called so."""
    dist = entry.dist
    return (
        dist is not None
        and dist.name == _OURS
        and Path(str(dist.locate_file(""))).resolve() == trust.HOME
    )


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
