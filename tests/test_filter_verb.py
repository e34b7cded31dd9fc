"""``kcap filter``: what is wanted is copied as it is, and nothing tells of the rest."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cli_support import run, shell
from filter_support import NS, SECRETS, kept_by, planted, saved, uncovered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import make_events, opened, read, rows_of

from kcap.model.batch import without_state


@pytest.mark.parametrize("state", ["needed", "none"])
@pytest.mark.parametrize(
    "words", [["-w", "ps.pid = 1"], ["-n", "5"], ["--canonical", "-w", "ps.pid = 1"]]
)
def test_no_secret_of_what_was_left_out_is_in_any_byte_of_the_copy(
    tmp_path: Path, words: list[str], state: str
) -> None:
    """Twenty and more secrets are in the input, none of them in the copy."""
    source = planted(tmp_path / "in.kcap")
    assert kept_by(source) == set(SECRETS)

    result = run("filter", *words, "--state", state, source, "-o", tmp_path / "out.kcap")

    assert result.exit_code == 0, result.output
    assert kept_by(tmp_path / "out.kcap") == set()
    assert b"kept bytes" in uncovered((tmp_path / "out.kcap").read_bytes())


def test_all_state_holds_the_secrets_of_the_state(tmp_path: Path) -> None:
    """What `--state all` keeps is found by the same search: the negative control."""
    source = planted(tmp_path / "in.kcap")

    run("filter", "-w", "ps.pid = 1", "--state", "all", source, "-o", tmp_path / "out.kcap")

    in_state = {"state_row", "process", "thread", "fd", "handle", "username"}
    assert kept_by(tmp_path / "out.kcap") == in_state


def test_the_filter_itself_is_not_in_the_copy(tmp_path: Path) -> None:
    """Who filters a secret away does not write it down."""
    source = planted(tmp_path / "in.kcap")
    where = f"ps.pid = 1 and not file.path contains '{SECRETS['path']}'"

    result = run("filter", "-w", where, source, "-o", tmp_path / "out.kcap")

    assert result.exit_code == 0, result.output
    assert kept_by(tmp_path / "out.kcap") == set()


@given(
    chunk=st.sampled_from([1, 7, 64]),
    where=st.sampled_from(
        [
            "file.path = '/tmp/3'",
            "file.path contains '1' or evt.arg[fd] = 4",
            "evt.arg[big] > 0",
            "not file.path startswith '/tmp'",
        ]
    ),
    state=st.sampled_from(["needed", "all", "none"]),
)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_events_keep_every_value(tmp_path: Path, chunk: int, where: str, state: str) -> None:
    """What cat shows of the input by a filter is what it shows of the copy, however chunked."""
    source = saved(tmp_path / "in.kcap", [make_events(200)], chunk_rows=chunk)
    out = tmp_path / "out.kcap"

    result = run("filter", "--force", "-w", where, "--state", state, source, "-o", out)

    assert result.exit_code == 0, result.output
    for form in ("jsonl", "line"):
        shown = run("cat", "--format", form, out)
        assert shown.exit_code == 0
        assert shown.stdout == run("cat", "--format", form, "-w", where, source).stdout
        assert shown.stdout == run("cat", "--format", form, "-w", where, out).stdout
    assert run("verify", out).exit_code == 0
    batches, losses = read(out.read_bytes())
    assert not losses
    whole = dict(enumerate(rows_of([make_events(200)])))
    ords = [row["ord"] for b in batches for row in b.to_pylist()]
    assert rows_of(batches) == [whole[o] for o in ords]  # type: ignore[index]


def test_what_was_left_out_and_lost_is_counted(tmp_path: Path) -> None:
    """Info shows the events that were left out, by source, and the losses of the input."""
    source = planted(tmp_path / "in.kcap")
    run("filter", "-w", "ps.pid = 1", source, "-o", tmp_path / "out.kcap")

    shown = run("info", tmp_path / "out.kcap")

    assert shown.exit_code == 0
    assert "lost 3 events: ring full" in shown.stdout
    assert "filtered" not in run("timeline", tmp_path / "out.kcap").stdout
    assert "filtered 3 events: left out of this copy" in shown.stdout  # of MINE
    assert "filtered 1 event: left out of this copy" in shown.stdout  # of OTHER
    assert "other" not in shown.stdout.split("events name")[0]


def test_a_pipe_is_read_twice_too(tmp_path: Path) -> None:
    """From standard input comes the copy that comes from a file."""
    source = planted(tmp_path / "in.kcap")
    words = ["--canonical", "-w", "ps.pid = 1", "-o"]
    run("filter", source, *words, tmp_path / "file.kcap")

    piped = run("filter", "-", *words, tmp_path / "pipe.kcap", input=source.read_bytes())

    assert piped.exit_code == 0, piped.output
    assert (tmp_path / "pipe.kcap").read_bytes() == (tmp_path / "file.kcap").read_bytes()
    assert b"kept bytes" in uncovered((tmp_path / "pipe.kcap").read_bytes())


def test_in_a_shell(tmp_path: Path) -> None:
    """A real pipe on both sides; the copy is private."""
    planted(tmp_path / "in.kcap")
    os.umask(0o022)

    done = shell("cat in.kcap | kcap filter - -w 'ps.pid = 1' -o - | kcap info -", tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"filtered 3 events" in done.stdout
    assert run("filter", tmp_path / "in.kcap", "-o", tmp_path / "out.kcap").exit_code == 0
    assert stat.S_IMODE((tmp_path / "out.kcap").stat().st_mode) == 0o600


def test_times_and_numbers(tmp_path: Path) -> None:
    """--start, --end and -n choose as cat chooses; a copy that ends early says so."""
    source = saved(tmp_path / "in.kcap", [make_events(100)])
    bounds = ["--start", str(NS + 20_000), "--end", str(NS + 60_000), "-n", "13"]

    result = run("filter", *bounds, source, "-o", tmp_path / "out.kcap")

    assert result.exit_code == 0, result.output
    copied = run("cat", "--format", "jsonl", tmp_path / "out.kcap").stdout
    assert copied == run("cat", "--format", "jsonl", *bounds, source).stdout
    assert copied.count("\n") == 13
    assert "ends at a number of events" in run("info", tmp_path / "out.kcap").stdout


def test_a_number_of_events_counts_no_state_records(tmp_path: Path) -> None:
    """-n with --state all gives that many events, and all state records."""
    source = planted(tmp_path / "in.kcap")

    run("filter", "-n", "7", "--state", "all", source, "-o", tmp_path / "out.kcap")

    batches, _ = read((tmp_path / "out.kcap").read_bytes())
    assert sum(b.rows for b in batches) == 8
    assert sum(without_state(b).rows for b in batches) == 7


def test_damage_in_the_input_is_said(tmp_path: Path) -> None:
    """A damaged chunk leads to exit code 3, and the copy knows of it."""
    source = saved(tmp_path / "in.kcap", [make_events(300)], chunk_rows=100)
    data = bytearray(source.read_bytes())
    entry = opened(bytes(data)).index().table[1]  # type: ignore[union-attr]
    data[int(entry["offset"]) + int(entry["length"]) // 2] ^= 1
    source.write_bytes(data)

    result = run("filter", "-w", "file.path = '/tmp/3'", source, "-o", tmp_path / "out.kcap")

    assert result.exit_code == 3
    assert "damaged" in result.stderr
    assert "damaged" in run("info", tmp_path / "out.kcap").stdout


@pytest.mark.parametrize("state", ["needed", "none"])
def test_a_bad_line_ends_the_copy(tmp_path: Path, state: str) -> None:
    """What came before it is in the copy, which says where it ends; with --lenient it goes on."""
    good = '{"timestamp":1,"processId":1,"eventName":"open","args":[]}\n'
    (tmp_path / "in.jsonl").write_text(good * 3 + "{nothing\n" + good)
    words = ["--state", state, "-w", "evt.name = 'open'", str(tmp_path / "in.jsonl"), "-o"]

    result = run("filter", *words, tmp_path / "out.kcap")

    assert result.exit_code == 1
    assert "line 4" in result.stderr
    assert run("cat", tmp_path / "out.kcap").stdout.count("\n") == 3
    assert "torn" in run("info", tmp_path / "out.kcap").stdout
    lenient = run("filter", "--lenient", *words, tmp_path / "more.kcap")
    assert lenient.exit_code == 3
    assert run("cat", tmp_path / "more.kcap").stdout.count("\n") == 4


@pytest.mark.parametrize("words", [["-w", "ps.nme = 'x'"], ["-w", "ps.name ="], []])
def test_bad_usage_writes_nothing(tmp_path: Path, words: list[str]) -> None:
    """A filter that is none, or no output, is a usage error."""
    source = saved(tmp_path / "in.kcap", [make_events(5)])

    output = ["-o", str(tmp_path / "o.kcap")] if words else []

    result = run("filter", *words, source, *output)

    assert result.exit_code == 2
    assert not (tmp_path / "o.kcap").exists()


def test_an_existing_copy_stays(tmp_path: Path) -> None:
    """Without --force nothing is replaced."""
    source = saved(tmp_path / "in.kcap", [make_events(5)])
    (tmp_path / "out.kcap").write_bytes(b"precious")

    result = run("filter", source, "-o", tmp_path / "out.kcap")

    assert result.exit_code == 1
    assert (tmp_path / "out.kcap").read_bytes() == b"precious"
    assert run("filter", "--force", source, "-o", tmp_path / "out.kcap").exit_code == 0


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("scap/full_capture.scap", "evt.name = 'open'"),
        ("scap/full_capture.scap", "ps.name contains 's' and not evt.category = 'file'"),
        ("scap/full_capture.scap", "ps.ancestor in ('systemd')"),
        ("tracee/tracee_event_dump_2022-10.jsonl.gz", "ps.ancestor[0] = 'sh'"),
        pytest.param(
            "fibratus/v1.6.0-test.kcap",
            "ps.parent.name = 'go.exe' and evt.category = 'file'",
            marks=pytest.mark.long,
        ),
    ],
)
def test_real_captures(data: Any, tmp_path: Path, name: str, where: str) -> None:
    """On the copy a filter finds what it found in a foreign capture: by its processes' kin, too."""
    source, out = data(name), tmp_path / "out.kcap"

    result = run("filter", "-w", where, source, "-o", out)

    assert result.exit_code == run("cat", source).exit_code, result.output
    shown = run("cat", "-w", where, source).stdout
    assert shown.count("\n") > 10
    assert run("cat", "-w", where, out).stdout == shown
    assert run("cat", out).stdout == shown
    if "ancestor" in where:  # what the state is for
        run("filter", "--force", "--state", "none", "-w", where, source, "-o", out)
        assert run("cat", out).stdout == shown
        assert run("cat", "-w", where, out).stdout != shown
