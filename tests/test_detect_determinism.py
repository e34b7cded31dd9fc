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
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from unittest import mock

import every_rule
import filter_rows
import pytest
from cli_support import run
from detect_support import batch, cut, raised, stateful, stream
from hypothesis import given
from hypothesis import strategies as st
from replay_support import Cut

from kcap.detect.engine import Detections
from kcap.filter.many import Filters
from kcap.model.alert import Alert
from kcap.model.batch import Batch
from kcap.model.stream import StreamInfo
from kcap.opening import open_source
from kcap.replay.pipeline import Pipeline
from kcap.state import State
from kcap.tools import alerting, ruleset
from kcap.writers.jsonl import JsonLines

TESTS = Path(__file__).parent
SEED, COUNT = 7, 60

CHILD = """
import sys
sys.path.insert(0, {tests!r})
import test_detect_determinism as here
print(here.digest(here.all_kinds({rules!r}, {sizes})), here.digest(here.by_sets({rules!r})))
"""
INTRUSION = TESTS.parent / "fixtures" / "intrusion.kcap"
SIZES = (1, 997, 65_536)
LOCALES = ("C", "C.UTF-8", "tr_TR.UTF-8")


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


def digest(output: bytes) -> str:
    """All of it in a word."""
    return hashlib.sha256(output).hexdigest()


def all_kinds(rules: str, sizes: Sequence[int], capture: Path = INTRUSION) -> bytes:
    """A capture with the alerts of rules of every kind, in batches of these sizes."""
    out = io.BytesIO()
    source = open_source(capture, resolve=False)
    Pipeline(
        Cut(source, sizes),
        [JsonLines(out)],
        state=State(),
        resolve=source.info.format != "kcap",
        taps=[alerting.Rules(ruleset.selected([rules], "all"))],
    ).run()
    source.close()
    return out.getvalue()


ALERTS = Detections.alerts
Found = list[tuple[int, Alert]]


def _rule_after_rule(self: Detections, batch: Batch) -> Found:
    """The alerts of a batch, rule after rule, behind it."""
    found = [one for _, one in ALERTS(self, batch)]
    return [(batch.rows, one) for one in sorted(found, key=lambda one: one.rule)]


def _begun_anew(self: Detections, batch: Batch) -> Found:
    """The alerts of rules that remember nothing of the batches before."""
    return ALERTS(Detections(self.rules), batch)


def _in_sets(self: Detections, batch: Batch) -> Found:
    """The alerts of each event in the order of a set of rules: as the hash seed has it."""
    order = {name: n for n, name in enumerate({rule.about.id for rule in self.rules})}
    return sorted(ALERTS(self, batch), key=lambda one: (one[0], order[one[1].rule]))


def by_sets(rules: str) -> bytes:
    """What an engine that goes through sets makes of it."""
    with mock.patch.object(Detections, "alerts", _in_sets):
        return all_kinds(rules, [65_536])


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with rules of every kind but Tracee's."""
    return str(every_rule.written(tmp_path_factory.mktemp("every")))


@pytest.fixture(scope="module")
def expected(rules: str) -> bytes:
    """What all must come to."""
    return all_kinds(rules, [65_536])


def in_child(rules: str, sizes: Sequence[int], **environment: str) -> tuple[str, str]:
    """The same in a process of its own; and what an engine that goes through sets gives there."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(tests=str(TESTS), rules=rules, sizes=list(sizes))],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), **environment},
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


def test_rules_of_every_kind_find_something(expected: bytes, rules: str) -> None:
    """Of kcap, of Python, of Tracee, of Fibratus, of Sigma: what is compared below."""
    found = every_rule.rules_of(every_rule.alerts_in(expected))
    known = ruleset.selected([rules], "all").rules

    assert {one.about.kind for one in known if one.about.id in found} == set(every_rule.KINDS)
    assert {one.about.id for one in known if one.about.kind != "tracee"} <= found


def test_batches_do_not_matter_to_any_kind(expected: bytes, rules: str) -> None:
    """Cut in parts of many sizes: the same bytes."""
    assert all_kinds(rules, [31, 7, 64, 1]) == expected


@pytest.mark.long
@given(sizes=st.lists(st.integers(1, 90), min_size=1, max_size=20))
def test_cut_anywhere_it_is_the_same(sizes: list[int], expected: bytes, rules: str) -> None:
    """Boundaries of batches are no matter, wherever they are."""
    assert all_kinds(rules, sizes) == expected


@pytest.mark.parametrize("broken", [_rule_after_rule, _begun_anew])
def test_batches_would_matter(
    broken: Callable[[Detections, Batch], Found],
) -> None:
    """The controls: rule after rule, and state begun anew, show where batches are others."""
    with mock.patch.object(Detections, "alerts", broken):
        found = {digest(lines.__wrapped__(rows)) for rows in (7, COUNT)}

    assert len(found) == 2
    assert digest(lines(COUNT)) not in found or broken is _begun_anew


def test_the_environment_does_not_matter(expected: bytes, rules: str) -> None:
    """Hash seed, zone, locale, threads; an engine that goes through sets would be found out."""
    there, sets = in_child(
        rules,
        [11, 64],
        PYTHONHASHSEED="4242",
        TZ="Asia/Tokyo",
        LC_ALL="C",
        OMP_NUM_THREADS="4",
    )

    assert there == digest(expected)
    assert sets != digest(by_sets(rules))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/St_Johns"])
def test_no_environment_matters(zone: str, locale: str, expected: bytes, rules: str) -> None:
    """Every hash seed, zone, locale, number of threads, with batches of each size and any sizes."""
    rng = random.Random()  # any must do
    for seed, threads in itertools.product(("0", "1", "random"), ("1", "2", "4")):
        sizes = rng.choice([[size] for size in SIZES] + [[rng.randrange(1, 60) for _ in range(9)]])
        environment = {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
        found, _ = in_child(rules, sizes, TZ=zone, LC_ALL=locale, **environment)

        assert found == digest(expected), (environment, sizes)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "name", ["first.kcap", "tracee/tracee_event_dump_2022-10.jsonl.gz", "scap/sample.scap"]
)
def test_batches_do_not_matter_to_other_captures(
    name: str, rules: str, fixtures: Path, data: Callable[[str], Path]
) -> None:
    """Recordings of others, too."""
    capture = fixtures / name if name == "first.kcap" else data(name)
    whole = all_kinds(rules, [65_536], capture)
    rng = random.Random(5)

    assert every_rule.alerts_in(whole)
    for sizes in ([997], *([rng.randrange(1, 500) for _ in range(20)] for _ in range(3))):
        assert all_kinds(rules, sizes, capture) == whole


def test_rules_in_another_order_give_the_same() -> None:
    """How files are listed decides nothing."""
    whole = batch(stream(SEED, COUNT))
    rules = stateful()
    expected = raised(Detections(rules), [whole])
    for seed in range(3):
        random.Random(seed).shuffle(rules)

        assert raised(Detections(rules), [whole]) == expected


def test_selectors_of_every_kind_find_what_the_interpreter_finds(rules: str) -> None:
    """Columns asked for all rules at once give the rows that each rule's filter is true of."""
    source = open_source(INTRUSION, resolve=False)
    batches = list(source.batches())
    source.close()
    every = ruleset.selected([rules], "all").rules
    selectors = [(rule.about.kind, one.filter) for rule in every for one in rule.selectors]
    asked = [(kind, one) for kind, one in selectors if not one.needs_state]
    together = Filters([one for _, one in asked])
    hits = Counter[str]()

    others = []
    for whole in batches:
        together.note(whole.before)
        found = [rows.tolist() for rows in together.rows(whole)]
        for (kind, one), rows in zip(asked, found, strict=True):
            assert rows == filter_rows.rows(one, whole), one.text
            hits[kind] += len(rows)
        # The control: those of another rule are others.
        others += [filter_rows.rows(asked[at][1], whole) == found[-1 - at] for at in range(5)]

    assert not all(others)
    assert set(hits) == set(every_rule.KINDS)
    assert all(hits.values()), hits
    assert len(asked) > len(selectors) * 0.9


WORLD = ("time", "time_ns", "localtime", "gmtime")


def unworldly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take clock and network away."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("asked for in a replay")

    for name in WORLD:
        monkeypatch.setattr(time, name, refused)
    monkeypatch.setattr(socket, "socket", refused)


@pytest.mark.parametrize("verb", [pytest.param("replay", marks=pytest.mark.long), "detect"])
def test_nothing_is_asked_of_clock_or_network(
    verb: str, rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules of every kind are read and run without either, and nothing is missing."""
    words: tuple[str | Path, ...] = (INTRUSION, "--format", "jsonl", *every_rule.words(Path(rules)))
    there = every_rule.printed(verb, *words)
    unworldly(monkeypatch)

    assert every_rule.printed(verb, *words) == there


@pytest.mark.parametrize("asks", ["time.time()", "socket.socket().close()"])
def test_a_rule_that_asks_is_caught(
    asks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a signature that looks at the clock or the network fails there."""
    text = every_rule.TEXTS["signature.py"].replace("pid = f", f"{asks}; pid = f")
    path = tmp_path / "asks.py"
    path.write_text(f"import socket\nimport time\n{text}")
    path.chmod(0o600)
    words = ("detect", INTRUSION, "--rules", path)
    assert run(*words).exit_code == 0
    unworldly(monkeypatch)

    result = run(*words)

    assert result.exit_code == 3
    assert "asked for in a replay" in result.stderr


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
