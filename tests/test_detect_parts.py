"""Rules over a part of a capture: the alerts of the whole run, wherever it begins or goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import every_rule
import pytest
from cli_support import run
from determinism_child import cut_anew
from every_rule import Alert, alerts_in, ids, printed, rules_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_resume import killed, place

from kcap.replay import passing
from kcap.tools import ruleset

ROWS = 152
"""Events of the intrusion."""

COUNTING = '''"""Says what it was told, every tenth event and at the end."""

seen = []


def on_next_event(event):
    process = find_process(event["pid"])
    seen.append(f"{event['name']} {process and process.name}")
    if len(seen) % 10 == 0:
        emit_alert("tenth", " ".join(seen[-10:]))


def on_stop():
    emit_alert("last", str(len(seen)))
'''


@pytest.fixture(scope="module")
def whole(words: tuple[str, ...], intrusion: Path) -> list[bytes]:
    """The lines of the whole run, events and alerts."""
    return replayed(intrusion, *words)


def replayed(*more: str | Path) -> list[bytes]:
    """The lines of a replay."""
    return printed("replay", "--format", "jsonl", *more).splitlines(keepends=True)


def rows_before(lines: Sequence[bytes], row: int) -> int:
    """How many lines come before an event; alerts belong to the event before them."""
    events = [n for n, line in enumerate(lines) if json.loads(line)["kind"] != "alert"]
    return events[row] if row < len(events) else len(lines)


def between(lines: Sequence[bytes], start_ns: int | None, end_ns: int | None) -> list[Alert]:
    """The alerts of an interval."""
    return [
        one
        for one in alerts_in(b"".join(lines))
        if (start_ns is None or one["ts"] >= start_ns) and (end_ns is None or one["ts"] < end_ns)
    ]


def test_there_are_rules_of_every_kind(whole: list[bytes], words: tuple[str, ...]) -> None:
    """The comparisons below are of sequences, correlations, absences, all signatures."""
    found = rules_of(alerts_in(b"".join(whole)))
    kinds = {
        one.about.kind for one in ruleset.selected([words[1]], "all").rules if one.about.id in found
    }

    assert kinds == set(every_rule.KINDS)
    assert {"STEPS", "MANY", "FEW", "ORDERED", "ABSENT", "LATER", "KIN", "WRITERS"} <= found
    assert {"TRC-1", "TRC-7", "one_after_the_other"} <= found


# --start and --end


@settings(max_examples=1)
@given(bounds=st.lists(st.integers(0, ROWS), min_size=2, max_size=2).map(sorted))
def test_of_rows_it_is_that_part_of_the_whole(
    bounds: list[int], whole: list[bytes], words: tuple[str, ...], intrusion: Path
) -> None:
    """From any row to any other: the same lines, the alerts behind each row among them."""
    first, last = bounds
    found = replayed(intrusion, *words, "--start", f"#{first}", "--end", f"#{last}")

    assert found == whole[rows_before(whole, first) : rows_before(whole, last)]


@settings(max_examples=2)
@given(draw=st.data())
def test_of_a_time_it_is_the_alerts_of_that_time(
    draw: st.DataObject, whole: list[bytes], words: tuple[str, ...], intrusion: Path
) -> None:
    """From any time to any other, with replay and with detect."""
    times = sorted({one["ts"] for one in map(json.loads, whole)})
    start_ns = draw.draw(st.sampled_from([None, *times]))
    end_ns = draw.draw(st.sampled_from([None, *times]))
    expected = between(whole, start_ns, end_ns)
    given_ns = (("--start", start_ns), ("--end", end_ns))
    more = [word for name, ns in given_ns if ns is not None for word in (name, str(ns))]

    for verb in ("replay", "detect"):
        found = printed(verb, "--format", "jsonl", intrusion, *words, *more)

        assert alerts_in(found) == expected


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_it_is_at_many_places(
    seed: int, whole: list[bytes], words: tuple[str, ...], intrusion: Path
) -> None:
    """The same at rows and times all over the capture."""
    rng = random.Random(seed)
    for row in rng.sample(range(ROWS), 40):
        ns = json.loads(whole[rows_before(whole, row)])["ts"]

        assert replayed(intrusion, *words, "--start", f"#{row}") == whole[rows_before(whole, row) :]
        found = printed("detect", "--format", "jsonl", intrusion, *words, "--start", str(ns))
        assert alerts_in(found) == between(whole, ns, None)


LONG = pytest.mark.long
MEMORIES = ("STEPS", "MANY", "ORDERED", "WRITERS", "TRC-1", "one_after_the_other")
QUICK_MEMORIES = ("ABSENT",)


@pytest.mark.parametrize(
    "rule", [*QUICK_MEMORIES, *(pytest.param(name, marks=LONG) for name in MEMORIES)]
)
def test_who_has_not_seen_the_beginning_says_something_else(
    rule: str, whole: list[bytes], words: tuple[str, ...], intrusion: Path, tmp_path: Path
) -> None:
    """The control: each kind of memory is missed where the part is a capture of its own."""
    row, alert_id = max(_remembering(whole, rule))
    part = tmp_path / "part.kcap"
    printed("replay", intrusion, "--format", "kcap", "-o", part, "--start", f"#{row}")

    cold = alerts_in(printed("detect", "--format", "jsonl", part, *words))

    assert alert_id in ids(alerts_in(b"".join(whole[rows_before(whole, row) :])))
    assert alert_id not in ids(cold)


def _remembering(whole: Sequence[bytes], rule: str) -> Iterator[tuple[int, str]]:
    """Alerts of a rule, each with the row of the event that it comes behind."""
    row = -1
    for one in map(json.loads, whole):
        if one["kind"] != "alert":
            row += 1
            behind = f"{one['origin']}:{one['ord']}"
        elif one["arg_rule"] == rule and one.get("arg_title") != "They are left":
            at_once = rule == "ABSENT" and behind in one["arg_causes"]
            yield 0 if at_once else row, one["arg_alert_id"]


def test_a_count_is_of_the_wanted_events(
    whole: list[bytes], words: tuple[str, ...], intrusion: Path
) -> None:
    """--limit counts from --start on, not what only rules have seen."""
    found = replayed(intrusion, *words, "--start", "#40", "-n", "30")

    *found, last = found
    assert found == whole[rows_before(whole, 40) : rows_before(whole, 70)]
    assert json.loads(last)["arg_title"] == "They are left"  # the stream ends there


@pytest.mark.parametrize("option", ["--start", "--end"])
def test_an_event_that_is_not_there_is_an_error(
    option: str, words: tuple[str, ...], intrusion: Path
) -> None:
    """As without rules: nothing is silently empty, or whole."""
    result = run("replay", intrusion, *words, option, f"{'0' * 32}:5")

    assert result.exit_code == 1
    assert "there is no event" in result.stderr


# filaments beside rules


def beside(folder: Path, *more: str | Path) -> list[bytes]:
    """The lines of a replay with a filament."""
    (folder / "counting.py").write_text(COUNTING)
    out = folder / "out.jsonl"
    asked = ("--format", "jsonl", "-f", folder / "counting.py", "--force", "-o", out)
    printed("replay", *asked, *more)
    return out.read_bytes().splitlines(keepends=True)


SPAN = ("--start", "#60", "--end", "#131")


@pytest.mark.parametrize(
    "span",
    [SPAN, *(pytest.param(one, marks=LONG) for one in (("--end", "#77"), ("--start", "#101")))],
    ids=" ".join,
)
def test_filaments_beside_rules_see_their_part(
    span: tuple[str, ...], words: tuple[str, ...], intrusion: Path, tmp_path: Path
) -> None:
    """What a filament says is what it says alone, what rules say what they say alone."""
    both = beside(tmp_path, intrusion, *words, *span)
    alone = beside(tmp_path, intrusion, *span)
    rules = replayed(intrusion, *words, *span)

    assert [one for one in both if b'"filament:' in one] == [
        one for one in alone if b'"filament:' in one
    ]
    assert [one for one in both if b'"filament:' not in one] == rules
    assert sum(b'"filament:' in one for one in both) > 5


@pytest.mark.long
def test_a_filament_that_saw_everything_would_say_something_else(
    words: tuple[str, ...], intrusion: Path, tmp_path: Path
) -> None:
    """The control: without the part, and with the part but without what was known before it."""
    alone = [one for one in beside(tmp_path, intrusion, *SPAN) if b'"filament:' in one]

    def see(self: passing.Partly, batch: object) -> object:
        return self._tap.see(batch)  # type: ignore[arg-type]

    nothing = mock.Mock(return_value=[])
    for where, name, broken in ((passing.Partly, "see", see), (passing.Passed, "_sides", nothing)):
        with mock.patch.object(where, name, broken):
            both = beside(tmp_path, intrusion, *words, *SPAN)
        assert [one for one in both if b'"filament:' in one] != alone


# --resume


@pytest.fixture
def host(tmp_path: Path, intrusion: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with the capture in chunks of a few rows."""
    monkeypatch.chdir(tmp_path)
    cut_anew(intrusion, tmp_path / "host.kcap", [30])
    return tmp_path


PART = ("--format", "jsonl", "--start", "#20", "--end", "#150", "-w", "evt.name = 'write'")


@pytest.mark.parametrize(
    ("more", "saved"),
    [
        (("--format", "jsonl"), True),
        pytest.param(("--format", "jsonl"), False, marks=LONG),
        pytest.param(PART, True, marks=LONG),
        pytest.param(PART, False, marks=LONG),
        pytest.param(("--format", "line", "-n", "120"), True, marks=LONG),
    ],
)
def test_wherever_it_is_interrupted_alerts_come_once(
    more: tuple[str, ...], saved: bool, words: tuple[str, ...], host: Path
) -> None:
    """Rules see what the run before has seen, and raise what it has not raised."""
    asked = ("replay", "host.kcap", *words, *more)
    expected = run(*asked).stdout
    resumed = (*asked, "-o", "out", "--resume", "place.json")
    for after in (2, 4):
        with killed(after, saved=saved):
            assert run(*resumed).exit_code == 1
        with (host / "out").open("ab") as stream:
            stream.write(b'{"half a li')

    result = run(*resumed)

    assert result.exit_code == 0, result.output
    out = (host / "out").read_text()
    assert out == expected
    assert place()["done"]
