"""Events as the Linux recorder gives them, for the tests of what is made of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kcap.model import catalogue, naming, shape
from kcap.model.batch import Batch
from kcap.model.builder import Field, RecordBuilder
from kcap.model.side import SourceInfo
from kcap.replay.derived import FAMILY, Derivation, names

Event = dict[str, Any]
RECORDER = SourceInfo(FAMILY, host="host", boot_id="boot", origin="11" * 16)
OPEN = {"pathname": "/etc/shadow", "path_arg": "shadow", "flags": 0o2000000, "dev": 7, "inode": 1}


def recording(events: Iterable[tuple[str, Event]], source: SourceInfo = RECORDER) -> Batch:
    """Events as the recorder gives them; a name with a ``$`` is a column, not an argument."""
    builder = RecordBuilder()
    for count, (event, values) in enumerate(events):
        bases = [n[1:] if n.startswith("$") else naming.argument(n) for n in values]
        bases = ["ts", "ord", "event", "source", "pid", *bases]
        fields = [Field(base, catalogue.home(base)) for base in bases]
        text = shape.encode(
            [shape.Item(n, "any", v is None) for n, v in values.items() if n[:1] != "$"]
        )
        layout = builder.layout(fields, text)
        builder.add(layout, [10**18 + count, count, event, source.id, 5, *values.values()])
    return builder.finish({}, [source])


def derived_rows(batch: Batch, *wanted: str) -> list[Event]:
    """The derived events of a batch, of all views or of some."""
    found = Derivation(wanted or names()).process(batch).to_pylist()
    return [row for row in found if "derived_from" in row]


def arguments(row: Event) -> Event:
    """The arguments of an event by name."""
    found = {n: v for n, v in row.items() if n.startswith("arg_")}
    return {naming.source_name(naming.parts(n)[0]): v for n, v in found.items()}
