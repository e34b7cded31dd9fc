"""Alerts as tracee-rules prints them: a paragraph each, with the time of the event."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, BinaryIO, Final

from kcap.errors import OutputError
from kcap.model import alert, naming, text
from kcap.model.batch import Batch

_COLUMNS: Final = {
    "ts": "ts",
    "host": "host",
    "command": "process_name",
    "rule": naming.argument("rule"),
    "title": naming.argument("title"),
    "text": naming.argument("text"),
    "data": naming.argument("alert_data"),
    "cut": f"{naming.argument('alert_data')}__str",
}
_SECONDS: Final = "%Y-%m-%dT%H:%M:%SZ"
_NANOSECONDS: Final = 10**9
_EXPONENT: Final = 21


class Detections:
    """A sink that prints alerts and nothing else.

    Args:
        stream: Where they go; stays open. Each batch goes out at once: somebody may wait for it.
        telling: Rules that have a text of their own for each alert, which is printed too.
    """

    def __init__(self, stream: BinaryIO, telling: Collection[str] = ()) -> None:
        self._stream = stream
        self._telling = frozenset(telling)

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`.

        Args:
            batch: Events; those that are no alerts are passed over.

        Raises:
            OutputError: The stream takes no more.
        """
        if not batch.rows or not alert.alerts_in(batch):
            return
        columns = {
            name: batch.array(column).to_pylist() if column in batch.columns else [None]
            for name, column in _COLUMNS.items()
        }
        # Alerts are few: a loop over them costs nothing.
        for row in range(batch.rows):
            one = {name: cells[row % len(cells)] for name, cells in columns.items()}
            lines = self._lines(one)
            try:
                self._stream.write(("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))
            except BrokenPipeError:
                raise
            except OSError as error:
                raise OutputError(f"writing failed: {error.strerror}") from error
        self._stream.flush()

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`; the stream stays open."""

    def _lines(self, one: dict[str, Any]) -> list[str]:
        found = [
            "",
            "*** Detection ***",
            f"Time: {_time(one['ts'])}",
            f"Signature ID: {_said(one['rule'])}",
            f"Signature: {_said(one['title'])}",
            f"Data: {_data(one)}",
            f"Command: {_said(one['command'])}",
            f"Hostname: {_said(one['host'])}",
        ]
        if one["rule"] in self._telling and one["text"]:
            found.append(f"Text: {_said(one['text'])}")
        return found


def go(value: Any) -> str:  # noqa: ANN401 - any plain JSON value
    """A value as Go prints it.

    Args:
        value: A plain JSON value.

    Returns:
        ``map[a:1 b:[x y]]``, with the keys in order.
    """
    if isinstance(value, dict):
        pairs = (f"{key}:{go(value[key])}" for key in sorted(value))
        return f"map[{' '.join(pairs)}]"
    if isinstance(value, list):
        return f"[{' '.join(map(go, value))}]"
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _go_float(value)
    return str(value)


def _go_float(value: float) -> str:
    """The shortest form, with an exponent below -4 or from 21 on."""
    shortest = Decimal(repr(value)).normalize()
    power = shortest.adjusted()
    if not value or -4 <= power < _EXPONENT:  # noqa: PLR2004
        return f"{shortest:f}"
    sign, digits, _ = shortest.as_tuple()
    rest = "".join(map(str, digits[1:]))
    number = f"{'-' * sign}{digits[0]}{'.' * bool(rest)}{rest}"
    return f"{number}e{'-' if power < 0 else '+'}{abs(power):02}"


def _data(one: dict[str, Any]) -> str:
    """What was found; as it stands where it is too large to be a structure any more."""
    if one["data"] is None and one["cut"] is not None:
        return text.printable(one["cut"])
    try:
        return text.printable(go(json.loads(one["data"] or "{}")))
    except ValueError:
        return text.printable(one["data"])


def _said(value: str | None) -> str:
    return "" if value is None else text.printable(value)


def _time(ns: int | None) -> str:
    if ns is None:
        return ""
    return datetime.fromtimestamp(ns // _NANOSECONDS, UTC).strftime(_SECONDS)
