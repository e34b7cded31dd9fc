"""docs/events.md: what the recorder records and what is derived of it, as the catalogues say."""

from __future__ import annotations

import re

import events_doc

from kcap.model import catalogue
from kcap.readers.live.bpf import events
from kcap.readers.live.bpf.values import SPELLINGS
from kcap.replay.derived import FAMILY


def test_the_file_is_what_the_catalogues_say() -> None:
    """The committed text is the generated one: ``python tests/events_doc.py`` writes it."""
    text = events_doc.FILE.read_text("utf-8")
    assert text == events_doc.text(text)


def test_every_event_is_in_it() -> None:
    """Each recorded and each derived event has a row, with every argument it has."""
    rows: dict[str, str] = {}
    for line in (events_doc.recorded() + events_doc.derived()).splitlines():
        if found := re.match(r"\| `(\w+)` \| (.*)", line):
            rows[found[1]] = rows.get(found[1], "") + found[2]
    for name, event in events.events().items():
        assert {a.name for a in event.arguments} <= set(re.findall(r"`(\w+)`", rows[name])), name
    for entry in catalogue.derived(FAMILY):
        shown = set(re.findall(r"`(\w+)`", rows[entry.event]))
        assert {name for name, _, _ in entry.arguments} <= shown, entry.event


def test_every_kind_of_argument_is_judged() -> None:
    """What is said of the truth of arguments is said of kinds that there are."""
    assert set(events_doc.EXACTNESS) <= set(SPELLINGS)
    assert set(events_doc.EXACTNESS.values()) | {"exact"} == set(events_doc.MARKS)
