"""``kcap merge``: a union of captures that does not depend on how they are named or came about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cli_support import run, shell
from filter_support import events, planted, saved, told, uncovered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import make_events, opened
from test_split import ORIGINS, TIMES, content, rows, stream
from test_state import HOST

from kcap.model.batch import concat
from kcap.model.side import Loss, SourceInfo


def merge(target: Path, *words: str | Path) -> Path:
    """A merged capture."""
    result = run("merge", "--force", *words, "-o", target)
    assert result.exit_code == 0, result.output
    return target


@given(TIMES, TIMES)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_order_of_names_is_no_matter(
    tmp_path: Path, first: list[int | None], second: list[int | None]
) -> None:
    """merge(a, b) is merge(b, a), to the byte where it is canonical, and holds all events."""
    a = saved(tmp_path / "a.kcap", [stream(first, ORIGINS[0])])
    b = saved(tmp_path / "b.kcap", [stream(second, ORIGINS[1])])

    one = merge(tmp_path / "one.kcap", "--canonical", a, b)
    two = merge(tmp_path / "two.kcap", "--canonical", b, a)

    assert one.read_bytes() == two.read_bytes()
    assert sorted(rows(one)) == sorted(rows(a) + rows(b))
    assert run("verify", one).exit_code == 0


@given(st.lists(st.integers(0, 20), min_size=1, max_size=20))
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_a_filter_divides_is_put_together(tmp_path: Path, times: list[int]) -> None:
    """A capture is the events for which a filter is true and those for which it is not."""
    batch = stream(list(times), ORIGINS[0])
    source = saved(tmp_path / "in.kcap", [batch.select(n for n in batch.columns if n != "kind")])
    for name, where in (("a", "evt.name = 'e1'"), ("b", "not evt.name = 'e1'")):
        done = run("filter", "--force", "-w", where, source, "-o", tmp_path / f"{name}.kcap")
        assert done.exit_code == 0, done.output

    whole = merge(tmp_path / "whole.kcap", tmp_path / "b.kcap", tmp_path / "a.kcap")

    assert content(whole) == content(source)


def test_all_that_stands_beside_the_events_is_there(tmp_path: Path) -> None:
    """Sources, losses and blobs of all captures are in the merged one."""
    a = planted(tmp_path / "a.kcap")
    host = SourceInfo("test", host="third", boot_id="third", origin="0c" * 16)
    lost = Loss("lost", 5, "queue full", source=host.id)
    other = events([{"n": 1}], source=host).with_before([host, lost])
    b = saved(tmp_path / "b.kcap", [other])

    whole = merge(tmp_path / "whole.kcap", a, b)

    found = json.loads(run("info", "--json", whole).stdout)
    assert {s["host"] for s in found["sources"]} == {"mine", "other", "third"}
    assert sorted(e["count"] for e in found["loss"]) == [3, 5]
    assert b"kept bytes" in uncovered(whole.read_bytes())
    assert run("verify", whole).exit_code == 0


def test_the_state_of_both_filtered_copies_is_there(tmp_path: Path) -> None:
    """Processes that only one of two copies knows are known when they are merged."""
    source = planted(tmp_path / "in.kcap")
    for pid in (1, 2):
        run("filter", "-w", f"ps.pid = {pid}", source, "-o", tmp_path / f"{pid}.kcap")
    assert [set(s) for s in told(tmp_path / "1.kcap")] == [{1, 7}]

    whole = merge(tmp_path / "whole.kcap", tmp_path / "1.kcap", tmp_path / "2.kcap")

    assert set(told(whole)[-1]) == {1, 2, 7}


def test_a_time_range(tmp_path: Path) -> None:
    """--start and --end choose of what is merged."""
    a = saved(tmp_path / "a.kcap", [stream(list(range(1, 30, 2)), ORIGINS[0])])
    b = saved(tmp_path / "b.kcap", [stream(list(range(0, 30, 2)), ORIGINS[1])])

    some = merge(
        tmp_path / "some.kcap",
        "--start",
        "1970-01-01T00:00:00.000000010Z",
        "--end",
        "1970-01-01T00:00:00.000000020Z",
        a,
        b,
    )

    batches = [b for b in opened(some.read_bytes()).batches() if b.rows]
    assert [row["ts"] for row in concat(batches).to_pylist()] == list(range(10, 20))


def test_copies_are_warned_of(tmp_path: Path) -> None:
    """A copy of a capture gives its events twice; parts of one do not."""
    a = saved(tmp_path / "a.kcap", [make_events(20).with_before([HOST])])
    (tmp_path / "b.kcap").write_bytes(a.read_bytes())
    run("split", "--parts", "2", a, "-o", tmp_path / "p-{n}.kcap")

    twice = run("merge", a, tmp_path / "b.kcap", "-o", tmp_path / "twice.kcap")
    once = run("merge", *sorted(tmp_path.glob("p-*")), "-o", tmp_path / "once.kcap")

    assert "each event comes again" in twice.stderr
    assert "warning" not in once.stderr
    assert len(rows(tmp_path / "once.kcap")) == 20


def test_damage(tmp_path: Path) -> None:
    """A damaged input leads to exit code 3, one that is none to 1, or with --lenient to 3."""
    a = saved(tmp_path / "a.kcap", [stream([1, 2, 3], ORIGINS[0])])
    (tmp_path / "none.kcap").write_text("nothing\n")
    cut = tmp_path / "cut.kcap"
    cut.write_bytes(saved(tmp_path / "b.kcap", [stream([1, 2, 3], ORIGINS[1])]).read_bytes()[:-40])
    out = tmp_path / "out.kcap"

    assert run("merge", a, cut, "-o", tmp_path / "torn.kcap").exit_code == 3
    refused = run("merge", a, tmp_path / "none.kcap", "-o", out)
    assert refused.exit_code == 1
    assert not out.exists()
    passed = run("merge", "--lenient", a, tmp_path / "none.kcap", "-o", out)
    assert passed.exit_code == 3
    assert "none.kcap was passed over" in passed.stderr
    assert rows(out) == rows(a)
    assert run("merge", a, "-o", out).exit_code == 1  # it exists
    assert run("merge", "-o", out).exit_code == 2
    assert run("merge", a, a, "-o", tmp_path / "x.kcap").exit_code == 2


def test_pipes_and_foreign_captures(data: Any, tmp_path: Path) -> None:
    """Every readable format can be merged, one of them from a pipe."""
    a = saved(tmp_path / "a.kcap", [stream([1, 2, 3], ORIGINS[0])])
    scap = data("scap/curl_google.scap")
    alone = len(run("cat", "--format", "jsonl", scap).stdout.splitlines())

    done = shell(f"cat {scap} | kcap merge {a} - -o - | kcap info --json -", tmp_path)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["events"] == alone + 2


def test_blobs_of_a_pipe_are_counted(tmp_path: Path) -> None:
    """What can't be taken along from a pipe is said, and leads to exit code 3."""
    planted(tmp_path / "in.kcap")

    for verb in ("merge -", "split - --events 40", "import -"):
        done = shell(f"cat in.kcap | kcap {verb} -o '{verb[:3]}-{{n}}.kcap'", tmp_path)
        assert done.returncode == 3, done.stderr
        assert b"2 blobs of a pipe stayed behind" in done.stderr
