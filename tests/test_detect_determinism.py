"""The same alerts, byte for byte, in every environment; and what would break that is found."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
from detect_support import batch, cut, raised, stateful, stream

from kcap.detect.engine import Detections
from kcap.model.batch import Batch
from kcap.model.stream import StreamInfo
from kcap.replay.pipeline import Pipeline
from kcap.writers.jsonl import JsonLines

TESTS = Path(__file__).parent
SEED, COUNT = 7, 60

CHILD = """
import sys
sys.path.insert(0, {tests!r})
from test_detect_determinism import digest, named_by_sets
print(digest({rows}), named_by_sets())
"""


class _Pieces:
    """A source of a stream in batches of so many rows."""

    info = StreamInfo("test", "test")

    def __init__(self, pieces: list[Batch]) -> None:
        self._pieces = pieces

    def batches(self) -> itertools.chain[Batch]:
        """See `kcap.model.stream.Source`."""
        return itertools.chain(self._pieces)

    def close(self) -> None:
        """See `kcap.model.stream.Source`."""


@cache
def lines(rows: int) -> bytes:
    """A stream with its alerts as the JSON lines of a replay."""
    whole = batch(stream(SEED, COUNT))
    pieces = cut(whole, range(rows, COUNT, rows))
    out = io.BytesIO()
    Pipeline(_Pieces(pieces), [JsonLines(out)], taps=[Detections(stateful())]).run()
    return out.getvalue()


def digest(rows: int) -> str:
    """All of it in a word."""
    return hashlib.sha256(lines(rows)).hexdigest()


def named_by_sets() -> str:
    """What an engine that goes through a set of its rules would say: as the hash seed has it."""
    return ",".join({rule.about.id + str(n) for rule in stateful() for n in range(9)})


def in_child(rows: int, **environment: str) -> tuple[str, str]:
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(tests=str(TESTS), rows=rows)],
        env={**os.environ, **environment},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    first, second = done.stdout.split()
    return first, second


def test_there_are_alerts_of_every_rule() -> None:
    """The comparisons below are not of nothing with nothing."""
    found = [json.loads(line) for line in lines(COUNT).splitlines()]
    alerts = [one for one in found if one["kind"] == "alert"]

    assert {
        one["arguments"]["rule"] if "arguments" in one else one["arg_rule"] for one in alerts
    } == {rule.about.id for rule in stateful()}


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_the_size_of_batches_does_not_matter(rows: int) -> None:
    """The replay's bytes, alerts among the events, are the same."""
    assert lines(rows) == lines(COUNT)


def test_the_environment_does_not_matter() -> None:
    """Hash seed, time zone and locale; an engine that goes through sets would be found out."""
    here = digest(COUNT)
    there, sets = in_child(11, PYTHONHASHSEED="4242", TZ="Asia/Tokyo", LC_ALL="C")

    assert there == here
    assert sets != named_by_sets()


@pytest.mark.long
@pytest.mark.parametrize("seed", ["0", "1", "random"])
@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/St_Johns"])
def test_no_environment_matters(seed: str, zone: str) -> None:
    """Every hash seed in every time zone, in batches of one row and of many."""
    for rows in (1, 997):
        found, _ = in_child(rows, PYTHONHASHSEED=seed, TZ=zone)

        assert found == digest(COUNT)


def test_rules_in_another_order_give_the_same() -> None:
    """How files are listed decides nothing."""
    whole = batch(stream(SEED, COUNT))
    rules = stateful()
    expected = raised(Detections(rules), [whole])
    for seed in range(3):
        random.Random(seed).shuffle(rules)

        assert raised(Detections(rules), [whole]) == expected


def test_nothing_is_asked_of_clock_or_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is there, and nothing is missing."""
    expected = lines(COUNT)

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("asked for in a replay")

    for name in ("time", "time_ns"):
        monkeypatch.setattr(time, name, refused)
    monkeypatch.setattr(socket, "socket", refused)

    assert lines.__wrapped__(7) == expected


def test_ids_of_alerts_stay_when_other_events_go() -> None:
    """A filtered copy, where what alerts are about is still there, has the same ids."""
    events = [{**one, "ord": n} for n, one in enumerate(stream(SEED, COUNT))]
    kept = [one for one in events if one["event"] not in ("d", "e") and one.get("ts")]
    every = {one["alert_id"] for _, one in raised(Detections(stateful()), [batch(events)])}

    found = raised(Detections(stateful()), [batch(kept)])

    of_one = {one["alert_id"] for _, one in found if one["rule"] == "plain"}
    other = batch([{**one, "ord": one["ord"] + 1} for one in kept])
    moved = {one["alert_id"] for _, one in raised(Detections(stateful()), [other])}
    assert of_one
    assert of_one <= every
    assert not of_one <= moved
