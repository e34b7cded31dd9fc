"""Filaments: what they are given, when they are called, and in which order what they give comes."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
from derived_support import OPEN, recording
from filament_support import ORIGIN, START_NS, cut, events, filament, play
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.errors import KcapError
from kcap.filament.table import Plain
from kcap.filament.tap import Filaments
from kcap.filament.ticks import Clock, Ticks
from kcap.model.batch import EMPTY, Batch, Column, concat
from kcap.model.classes import I64_MAX, I64_MIN, TypeClass
from kcap.model.side import Heartbeat
from kcap.opening import open_source

COUNTING = """
from collections import Counter

seen = Counter()

def on_init():
    columns(["Program", "Events"])
    sort_by("Events")
    interval(2)

def on_next_event(event):
    seen[event["exe"]] += 1
    if event["name"] == "odd":
        print(event["seq"], event["timestamp"], now())
    if event["name"] == "alarm":
        emit_alert("an alarm", event["exe"], severity="critical", tags=["a", "b"])
        emit_alert("another", "")

def on_interval():
    print("tick", now())
    for item in seen.items():
        add_row(item)
    render_table()
    if seen:
        emit_alert("a tick", "of the clock")

def on_stop():
    print("stop", now(), sum(seen.values()))
"""


def stream(count: int = 200, seed: int = 1) -> Batch:
    """Events at times that go back now and then, some without one, some of them state."""
    rng = random.Random(seed)
    times: list[float | None] = []
    for i in range(count):
        at = i / 20 + rng.choice([0.0, 0.0, -3.5, 0.01])
        times.append(None if rng.random() < 0.05 else at)
    names = [rng.choice(["even", "odd", "even", "alarm"]) for _ in range(count)]
    kinds = ["state" if rng.random() < 0.1 else "event" for _ in range(count)]
    programs = [rng.choice(["sh", "cat", "ls"]) for _ in range(count)]
    return events(times, names, kinds, programs)


def test_the_cut_into_batches_does_not_matter(tmp_path: Path) -> None:
    """Text, tables and alerts of several filaments are the same bytes however the stream is cut."""
    several = [
        filament(tmp_path, COUNTING),
        filament(tmp_path, COUNTING.replace("interval(2)", "kfilter(\"evt.name = 'odd'\")"), "b"),
    ]
    whole = stream()
    expected = play(several, whole)
    assert expected.text.count("tick") > 10
    assert len(expected.alerts) > 20

    for sizes in ([1], [1, 50, 3], [199]):
        found = play(several, cut(whole, sizes))
        assert found == expected


def test_a_tap_that_flushes_each_batch_would_be_noticed(tmp_path: Path) -> None:
    """Negative control: where a tick came at the end of each batch, the bytes would differ."""
    one = filament(tmp_path, COUNTING)
    whole = stream()
    flushed = [part for batch in cut(whole, [50]) for part in (batch, _heart_of(batch))]

    assert play(one, flushed) != play(one, whole)


def _heart_of(batch: Batch) -> Batch:
    at_ns = START_NS + batch.rows * 10**9
    return EMPTY.with_before((Heartbeat(at_ns, at_ns),))


def test_hash_seeds_and_zones_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of a set and the zone of the host are the same in every run."""
    body = """
import datetime
def on_next_event(event):
    print({"alpha", "beta", "gamma", event["exe"]}, datetime.datetime.fromtimestamp(0))
"""
    one, whole = filament(tmp_path, body), stream(20)
    expected = play(one, whole).text
    monkeypatch.setenv("PYTHONHASHSEED", "77")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("LC_ALL", "C")

    assert play(one, whole).text == expected
    assert "1970-01-01 00:00:00" in expected


TICKING = """
def on_next_event(event):
    print(event["seq"])

def on_interval():
    print("tick", now())
"""


def test_a_tick_comes_before_the_events_of_its_time(tmp_path: Path) -> None:
    """Ticks are at start + k * n, each once, before events of that time or a later one."""
    found = play(filament(tmp_path, TICKING), events([0.0, 0.5, 1.0, 1.0, 3.25, 2.0, 4.0]))
    ticks = {f"tick {float(START_NS // 10**9 + k)}": f"T{k}" for k in range(9)}

    assert " ".join(ticks.get(line, line) for line in found.lines) == ("0 1 T1 2 3 T2 T3 4 5 T4 6")


def test_filters_do_not_move_the_clock(tmp_path: Path) -> None:
    """A filter changes which events come, not when the ticks do."""
    whole = stream()
    body = TICKING.replace("print(event", "str(event")
    without = play(filament(tmp_path, body), whole)
    filtered = play(filament(tmp_path, body), whole, where="evt.name = 'alarm'")

    assert without.lines == filtered.lines
    assert len(without.lines) >= 9


def test_records_of_what_was_there_are_no_events(tmp_path: Path) -> None:
    """State records neither reach a filament nor start or move its clock."""
    body = (
        "def on_next_event(event):\n    print(event['seq'])\ndef on_interval():\n    print('tick')"
    )
    batch = events([-1000.0, 0.0, 500.0, 0.5], kinds=["state", "event", "state", "event"])

    assert play(filament(tmp_path, body), batch).lines == ["1", "3"]


@given(st.lists(st.integers(0, 4 * 10**9), min_size=1, max_size=30), st.data())
@settings(max_examples=60)
def test_ticks_equal_a_plain_loop(steps: list[int], data: st.DataObject) -> None:
    """The columns' ticks are those of a loop over events, for any times and any cut."""
    times = [START_NS + sum(steps[: i + 1]) for i in range(len(steps))]
    expected, due_ns = [], times[0] + 10**9
    for row, now_ns in enumerate(times):
        while due_ns <= now_ns:
            expected.append((row, due_ns))
            due_ns += 10**9

    clock, ticks, found, start = Clock(), Ticks(1, 1000), [], 0
    batch = events([(t - START_NS) / 10**9 for t in times])
    for part in cut(batch, data.draw(st.lists(st.integers(1, 9), min_size=1))):
        due = ticks.due(clock.times(part))
        found += [(start + row, at) for row, at in zip(due.rows, due.times_ns, strict=True)]
        start += part.rows
    assert [row for row, _ in found] == [row for row, _ in expected]
    assert all(abs(a[1] - b[1]) < 1000 for a, b in zip(found, expected, strict=True))


def test_extreme_times_do_not_overflow(tmp_path: Path) -> None:
    """From the least to the greatest time there are too many ticks, and it says so."""
    batch = events([0.0, 1.0])
    wide = Column(TypeClass.I64, pa.array([I64_MIN + 1, I64_MAX]))
    with pytest.raises(KcapError, match=r"18,446,744,073 ticks are due before one event"):
        play(filament(tmp_path, TICKING), batch.adding({"ts": wide}))


def test_too_many_ticks_at_once_are_an_error(tmp_path: Path) -> None:
    """A gap with more ticks than the limit ends the run, in the same place however it is cut."""
    one, whole = filament(tmp_path, TICKING), events([0.0, 0.5, 11.0, 12.0])
    assert play(one, whole, catchup_ticks=11).text.count("tick") == 12
    texts = set()
    for sizes in ([4], [1], [2], [3]):
        with pytest.raises(KcapError, match=r"11 ticks are due") as caught:
            play(one, cut(whole, sizes), catchup_ticks=10)
        texts.add((str(caught.value), caught.value.printed))  # type: ignore[attr-defined]
    assert len(texts) == 1
    assert f"event {ORIGIN}:2 (tick)" in texts.pop()[0]


def test_a_quiet_host_ticks(tmp_path: Path) -> None:
    """Where no event comes, the heartbeats of a live source move the clock."""
    beats = [EMPTY.with_before((Heartbeat(START_NS + s * 10**9, s),)) for s in (1, 2, 3)]
    one = filament(tmp_path, TICKING)

    assert play(one, [events([0.0]), *beats]).text.count("tick") == 3
    assert play(one, [events([0.0])]).text.count("tick") == 0


def test_the_last_interval_is_called_where_asked_for(tmp_path: Path) -> None:
    """With the option the rest is shown: once more `on_interval`, if there were events since."""
    one = filament(tmp_path, TICKING)
    assert play(one, events([0.0, 0.5]), last_interval=True).lines[2:] == [
        f"tick {START_NS / 10**9 + 0.5}"
    ]
    assert play(one, events([0.0, 0.5])).text.count("tick") == 0
    body = TICKING.replace("def on_init", "def other") + "\nkfilter(\"evt.name = 'none'\")"
    assert play(filament(tmp_path, body), events([0.0, 0.5]), last_interval=True).text == ""


def test_its_own_filter_replaces_the_command_line(tmp_path: Path) -> None:
    """`kfilter`, `set_filter`, in `on_init` or outside, win over the filter that is given."""
    whole = events([0.0, 0.1, 0.2], ["a", "b", "c"])
    body = "def on_next_event(event):\n    print(event['name'])\n"
    assert play(filament(tmp_path, body), whole).lines == ["a", "b", "c"]
    assert play(filament(tmp_path, body), whole, where="evt.name = 'a'").lines == ["a"]
    for call in (
        "kfilter(\"evt.name = 'b'\")",
        "set_filter(\"evt.name = 'b'\")",
        "def on_init():\n    kfilter(\"evt.name = 'b'\")",
    ):
        found = play(filament(tmp_path, f"{body}\n{call}\n"), whole, where="evt.name = 'a'")
        assert found.lines == ["b"]


def test_a_bad_filter_is_shown_with_its_line(tmp_path: Path) -> None:
    """A filter that can't be understood names the file and the line that set it."""
    body = "def on_next_event(event):\n    pass\n\ndef on_init():\n    kfilter('ps.name = = 3')\n"
    with pytest.raises(KcapError, match=r"tried\.py: its filter can't be understood.*at line 6"):
        play(filament(tmp_path, body), EMPTY)


def test_alerts_stand_behind_their_events(tmp_path: Path) -> None:
    """An alert comes right behind the event in whose call it was raised, with an id of its own."""
    whole = stream()
    found = play(filament(tmp_path, COUNTING), whole)
    rows = whole.to_pylist()

    of_events = [(a, n) for a, n in zip(found.alerts, found.places, strict=True) if "pid" in a]
    assert {alert["arg_causes"][0] for alert, _ in of_events} == {
        f"{ORIGIN}:{row['ord']}"
        for row in rows
        if row["event"] == "alarm" and row["kind"] == "event"
    }
    for alert, place in of_events:
        assert alert["arg_causes"] == [f"{ORIGIN}:{place - 1}"]
    ids = [alert["arg_alert_id"] for alert in found.alerts]
    assert len({*ids}) == len(ids)


def test_an_alert_says_what_raised_it(tmp_path: Path) -> None:
    """Rule, version, severity, tags, time and cause of an alert are those of filament and event."""
    one = filament(tmp_path, COUNTING)
    first, second = play(one, events([0.25], ["alarm"], programs=["sh"])).alerts

    assert (first["event"], first["kind"]) == ("alert", "alert")
    assert first["arg_rule"] == "filament:tried"
    assert first["arg_rule_version"] == one.version
    assert first["arg_severity"] == "critical"
    assert first["arg_tags"] == ["a", "b"]
    assert (first["arg_title"], first["arg_text"]) == ("an alarm", "sh")
    assert first["ts"] == START_NS + 250_000_000
    assert first["process_name"] == "sh"
    assert second["arg_severity"] == "low"
    assert second["arg_alert_id"] != first["arg_alert_id"]


def test_versions_change_with_the_source(tmp_path: Path) -> None:
    """Another source is another version: also where only a module beside it changed."""
    (tmp_path / "helper.py").write_text("N = 1\n")
    body = "import helper\ndef on_next_event(event):\n    pass\n"
    before = filament(tmp_path, body).version
    assert filament(tmp_path, body).version == before
    (tmp_path / "helper.py").write_text("N = 2\n")

    assert filament(tmp_path, body).version != before
    assert filament(tmp_path, body + "\n").version != before
    assert len(before) == 12


ASKING = """
def on_next_event(event):
    found = find_process(event["pid"])
    print(event["name"], found and found.name, [p.pid for p in find_processes()],
          [p.pid for p in find_processes("CHILD")], find_handle(1, 2), find_handles(1))
"""


def test_questions_are_answered_as_of_the_event(tmp_path: Path) -> None:
    """`find_process` knows what the events up to this one tell, and not what comes later."""
    path = Path(__file__).parent.parent / "fixtures" / "first.kcap"
    with closing(open_source(str(path))) as opened:
        whole = concat(list(opened.batches()))
    body = ASKING.replace(
        'found = find_process(event["pid"])', 'found = find_process(event["pid"])'
    )
    one = filament(tmp_path, body)
    expected = play(one, whole)

    assert play(one, cut(whole, [1])).text == expected.text
    known = [line.split()[1] for line in expected.lines]
    assert set(known) - {"None"}
    counts = [line.count(",") for line in expected.lines]
    assert len(set(counts)) > 3  # the processes that run differ from event to event


def test_modules_beside_it_are_imported(tmp_path: Path) -> None:
    """Modules and packages in its folder, relative imports and Python's own library work."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "__init__.py").write_text("from . import deep\nfrom .deep import VALUE\n")
    (tmp_path / "inner" / "deep.py").write_text("import base64\nVALUE = base64.b64encode(b'x')\n")
    (tmp_path / "beside.py").write_text("from inner import VALUE\nimport datetime as d\n")
    body = """
import sys
from beside import VALUE, d
from utils.dotdict import dotdictify

@dotdictify
def on_next_event(event):
    print(VALUE, d.datetime.strptime("2020", "%Y").year, event.kparams, event.name, sys.argv)
"""
    found = play(filament(tmp_path, body, arguments=["one", "two"]), events([0.0]))

    assert found.text == "b'eA==' 2020 {} tick ['tried', 'one', 'two']\n"


def test_dotdict_of_the_folder_comes_first(tmp_path: Path) -> None:
    """A folder that has its own `utils.dotdict` uses that."""
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "dotdict.py").write_text("def dotdictify(f):\n    return lambda e: f(1)")
    body = "from utils.dotdict import dotdictify\n@dotdictify\ndef on_next_event(e): print(e)\n"

    assert play(filament(tmp_path, body), events([0.0])).text == "1\n"


def test_the_first_error_ends_the_run_wherever_it_is_cut(tmp_path: Path) -> None:
    """What other filaments gave before the event of an error is shown, and no more."""
    fails = filament(tmp_path, "def on_next_event(e):\n    if e['seq'] == 5: 1 / 0\n", "fails")
    prints = filament(tmp_path, "def on_next_event(e):\n    print(e['seq'])\n", "prints")
    whole = events([i / 10 for i in range(10)])
    for order, last in (([fails, prints], 4), ([prints, fails], 5)):
        for sizes in ([10], [1], [3]):
            with pytest.raises(KcapError, match="ZeroDivisionError") as caught:
                play(order, cut(whole, sizes))
            printed = caught.value.printed  # type: ignore[attr-defined]
            assert printed.split() == [str(i) for i in range(last + 1)]


def test_a_tap_closes_twice(tmp_path: Path) -> None:
    """`close` may be called again, and leaves no process."""
    tap = Filaments([filament(tmp_path, TICKING)], Plain(io.BytesIO()))
    (pid,) = tap.pids
    os.kill(pid, 0)
    tap.close()
    tap.close()

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_derived_events_have_alerts_of_their_own(tmp_path: Path) -> None:
    """Views that its filter names come behind their event; alerts for several are told apart."""
    body = """
kfilter("evt.name in ('openat', 'security_file_open')")
def on_next_event(event):
    print(event["seq"], event["name"])
    emit_alert(event["name"], "")
"""
    opened = {**OPEN, "$retval": 3}
    one = filament(tmp_path, body)
    whole = recording([("openat", opened), ("read", {}), ("openat", opened)])
    found = play(one, whole)

    assert found.lines == ["0 openat", "0 security_file_open", "2 openat", "2 security_file_open"]
    assert found.places == [1, 1, 3, 3]
    assert len({alert["arg_alert_id"] for alert in found.alerts}) == 4
    assert play(one, cut(whole, [1])) == found


@pytest.mark.long
def test_events_a_second(tmp_path: Path, data: Callable[[str], Path]) -> None:
    """A filament that counts gets 100,000 events in a second of processor time, all told."""
    body = "n = 0\ndef on_next_event(event):\n    global n\n    n += event['pid'] is not None\n"
    with closing(open_source(str(data("scap/nginx.scap")))) as opened:
        batches = list(opened.batches())
    stream = batches + [batch.with_before(()) for batch in batches] * 15
    tap = Filaments([filament(tmp_path, body)], Plain(io.BytesIO()))
    try:
        before_s = _cpu_s(os.getpid(), *tap.pids)
        for batch in stream:
            tap.see(batch)
        tap.end()
        took_s = _cpu_s(os.getpid(), *tap.pids) - before_s
    finally:
        tap.close()

    assert sum(batch.rows for batch in stream) / took_s > 100_000


def _cpu_s(*pids: int) -> float:
    """Processor time of processes so far: how long a wait took depends on what else runs."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")
