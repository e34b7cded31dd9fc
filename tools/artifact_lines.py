"""Artifacts as ``kcap artifacts`` prints them: a line each, or all that is known of one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from kcap.tools import common

if TYPE_CHECKING:
    from kcap.format.blobs import Manifest

PATH_CHARS: Final = 20
"""What a terminal must have left for paths."""

_MOST_SHOWN: Final = 20
_FIRST: Final = ("id", "kind", "sha256", "size", "path")
"""What is told of an artifact before all else, in this order."""

_NO_TIME: Final = "mount_ns"
"""Ends as times do, and is the number of a namespace."""

_CUT: Final = "…"


class _Column(NamedTuple):
    """A column of a list."""

    title: str
    width: int
    text: Callable[[Manifest], str]
    rank: int = 0
    """Those of the highest number go first where a terminal is narrow; 0 never goes."""
    short: bool = False
    """Its beginning is what people know it by."""


def _id(manifest: Manifest) -> str:
    from kcap.writers.artifacts_names import artifact_id

    return artifact_id(manifest)


def _kind(manifest: Manifest) -> str:
    from kcap.writers.artifacts_names import kind_of

    return kind_of(manifest)


def _time(manifest: Manifest) -> str:
    time_ns = manifest.details.get("time_ns")
    return common.utc(cast("int", time_ns)) if _is_time(time_ns) else "-"


def _pid(manifest: Manifest) -> str:
    pid = manifest.details.get("pid")
    return str(pid) if type(pid) is int else "-"


def _event(manifest: Manifest) -> str:
    return "-" if manifest.ord is None else f"{(manifest.origin or '-')[:8]}:{manifest.ord}"


_COLUMNS: Final = (
    _Column("ID", 12, _id, short=True),
    _Column("KIND", 6, _kind),
    _Column("SIZE", 10, lambda m: common.size_text(m.size)),
    _Column("STATE", 10, lambda m: "complete" if m.complete else "incomplete", 2),
    _Column("TIME", 23, _time, 1, short=True),
    _Column("PROCESS", 15, lambda m: str(m.details.get("process_name") or "-")),
    _Column("PID", 7, _pid),
    _Column("CONTAINER", 12, lambda m: str(m.details.get("container_id") or "-"), 3, short=True),
    _Column("EVENT", 17, _event, 4),
)
_GAP: Final = "  "


class Table:
    """A list of artifacts.

    Args:
        width: Characters of the terminal; None where it is none, and lines have any length.
    """

    def __init__(self, width: int | None = None) -> None:
        shown = list(_COLUMNS)
        while width is not None and _width(shown) + PATH_CHARS > width:
            least = max(shown, key=lambda column: column.rank)
            if not least.rank:
                break
            shown.remove(least)
        self._shown = shown

    @property
    def narrow(self) -> bool:
        """Whether columns were left out."""
        return len(self._shown) < len(_COLUMNS)

    @property
    def head(self) -> str:
        """The names of the columns."""
        return _GAP.join([*(f"{c.title:<{c.width}}" for c in self._shown), "PATH"])

    def row(self, manifest: Manifest) -> str:
        """An artifact in a line; the path stands last, and whole.

        Args:
            manifest: The artifact.

        Returns:
            The line, safe to print.
        """
        from kcap.model.text import printable

        cells = [_cell(printable(column.text(manifest)), column) for column in self._shown]
        return _GAP.join(
            [*cells, printable(manifest.path or str(manifest.details.get("name") or "-"))]
        )


def _width(columns: list[_Column]) -> int:
    return sum(column.width + len(_GAP) for column in columns)


def _cell(text: str, column: _Column) -> str:
    """A text in its column, with a mark where it is cut; an event is named whole."""
    if len(text) > column.width and column.text is not _event:
        text = text[: column.width] if column.short else text[: column.width - 1] + _CUT
    return f"{text:<{column.width}}"


def _is_time(value: object) -> bool:
    """Whether a detail is a time that can be told."""
    return type(value) is int and 0 <= value < 1 << 63


def lines(manifest: Manifest) -> Iterator[str]:
    """All that is known of an artifact, for people; not yet safe to print.

    Args:
        manifest: The artifact.

    Yields:
        Lines of a name and a value.
    """
    from kcap.writers.artifacts import described

    told = described(manifest)
    details = cast("dict[str, Any]", told.pop("details"))
    missing = told.pop("missing")
    if manifest.complete:
        del told["missing_bytes"]
    for name in (*_FIRST, *(n for n in told if n not in _FIRST)):
        if told[name] is not None:
            yield f"{name:<14} {_spelled(name, told[name])}"
    for name in sorted(details.keys() - told.keys()):
        yield f"{name:<14} {_spelled(name, details[name])}"
    for gap in missing[:_MOST_SHOWN]:
        end = gap["offset"] + gap["length"] - 1
        yield f"{'missing':<14} bytes {gap['offset']} to {end}: {gap['reason']}"
    if len(missing) > _MOST_SHOWN:
        yield f"{'missing':<14} and more ranges; --json lists a hundred"


def _spelled(name: str, value: object) -> str:
    """A value for people."""
    if name.endswith("_ns") and name != _NO_TIME and _is_time(value):
        return common.utc(cast("int", value))
    if name == "mode" and type(value) is int:
        return f"{value:#o}"
    if name in {"size", "missing_bytes", "hole_bytes"}:
        return f"{value:,} bytes"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
