"""The command line's outputs and inputs: files, pipes, terminals, links, full and closed ones."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import EVENTS, lines_of, on_a_terminal, rows_in, run, shell
from support import capture, make_events, rows_of

Kcap = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.mark.parametrize("words", [("cat",), ("info",), ("verify",), ("docs", "events"), ("man",)])
def test_a_full_output_is_one_line(words: tuple[str, ...], closed: Path) -> None:
    """An output that takes nothing more is exit code 1, and the message says which."""
    file = [] if words[0] in ("docs", "man") else [closed]
    command = [sys.executable, "-m", "kcap.tools", *words, *map(str, file)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=env, check=False)

    assert done.returncode == 1
    assert re.fullmatch(rb"kcap: -: writing failed: No space left on device\n", done.stderr)


@pytest.mark.parametrize("form", ["line", "jsonl", "kcap"])
def test_a_full_device_is_one_line(form: str, closed: Path) -> None:
    """The same where the output is named."""
    result = run("cat", closed, "--format", form, "-o", "/dev/full")

    assert result.exit_code == 1
    assert result.stderr.startswith("kcap: /dev/full: writing failed: No space left on device")
    assert "internal" not in result.stderr


@pytest.mark.parametrize("closing", ["<&-", ">&-"])
def test_a_stream_that_is_not_there_is_one_line(closing: str, closed: Path) -> None:
    """Run without standard input or output, kcap says so."""
    words = "cat -" if closing == "<&-" else f"cat {shlex.quote(str(closed))}"
    done = shell(f"kcap {words} {closing}", closed.parent)

    assert done.returncode == 1
    assert re.fullmatch(rb"kcap: -: standard (in|out)put is closed\n", done.stderr)


def test_a_capture_that_nobody_takes_is_a_failure(tmp_path: Path) -> None:
    """A capture is the product: where its reader leaves, one line says so, exit code 1."""
    (tmp_path / "big.kcap").write_bytes(capture([make_events(20_000)]))

    done = shell("kcap cat --format kcap big.kcap | head -c 100", tmp_path)

    assert done.returncode == 1
    assert done.stderr.startswith(b"kcap: -: writing failed: Broken pipe")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("form", ["line", "jsonl"])
def test_a_reader_that_leaves_ends_kcap_quietly(form: str, tmp_path: Path) -> None:
    """Whoever reads text may stop: status 0, nothing on standard error."""
    (tmp_path / "big.kcap").write_bytes(capture([make_events(20_000)]))

    done = shell(f"kcap cat --format {form} big.kcap | head -c 100", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout) == 100

    for words in ("", "--help", "cat --help", "docs events", "info big.kcap", "man"):
        done = shell(f"kcap {words} | true", tmp_path)
        assert (done.returncode, done.stderr) == (0, b""), words


@pytest.mark.parametrize("words", [("cat",), ("replay", "--format", "kcap"), ("import",)])
def test_nothing_is_overwritten_unasked(
    words: tuple[str, ...], closed: Path, tmp_path: Path
) -> None:
    """An output that exists is refused with a hint; --force replaces it."""
    target = tmp_path / "out.kcap"
    target.write_text("precious")

    refused = run(*words, closed, "-o", target)
    assert refused.exit_code == 1
    assert target.read_text() == "precious"
    assert refused.stderr.startswith(f"kcap: {target}: ")
    assert "\nhint: " in refused.stderr
    assert "--force" in refused.stderr

    assert run(*words, closed, "-o", target, "--force").exit_code == 0
    assert "precious" not in target.read_text("latin-1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["closed.kcap", "out.kcap"]


@pytest.mark.parametrize("verb", ["cat", "replay", "import"])
def test_a_source_that_cannot_be_opened_leaves_the_old_file(verb: str, tmp_path: Path) -> None:
    """--force touches nothing before there is something to write."""
    target = tmp_path / "out.kcap"
    target.write_text("precious")
    (tmp_path / "bad.kcap").write_text("no capture")

    for source in ("none.kcap", "bad.kcap"):
        result = run(verb, tmp_path / source, "-o", target, "--force")
        assert result.exit_code == 1
        assert target.read_text() == "precious"
    run(verb, tmp_path / "bad.kcap", "-o", tmp_path / "new.kcap")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.kcap", "out.kcap"]


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_wrong_usage_leaves_no_file(force: tuple[str, ...], closed: Path, tmp_path: Path) -> None:
    """What is refused before the first event has written nothing."""
    target = tmp_path / "out.txt"
    result = run("cat", closed, "-o", target, "--fields", "proces_name", *force)
    assert result.exit_code == 2
    assert "Did you mean 'process_name'?" in result.stderr
    assert not target.exists()

    result = run("cat", closed, "-o", target, "--template", "{{ .Process", *force)
    assert result.exit_code in (1, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["closed.kcap"]


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_outputs_are_private(force: tuple[str, ...], closed: Path, tmp_path: Path) -> None:
    """What is written may hold secrets: mode 0600 whatever the umask."""
    before = os.umask(0)
    try:
        run("cat", closed, "-o", tmp_path / "out.txt", *force)
        run("import", closed, "-o", tmp_path / "out.kcap", *force)
    finally:
        os.umask(before)
    for name in ("out.txt", "out.kcap"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("target", ["victim.txt", "nowhere"])
def test_outputs_never_go_through_a_link(
    force: tuple[str, ...], target: str, closed: Path, tmp_path: Path
) -> None:
    """A link planted under the output's name is refused, also a dangling one."""
    (tmp_path / "victim.txt").write_text("precious")
    link = tmp_path / "out.kcap"
    link.symlink_to(target)

    result = run("import", closed, "-o", link, *force)

    assert result.exit_code == 1
    assert "link" in result.stderr
    assert link.is_symlink()
    assert (tmp_path / "victim.txt").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_an_output_may_be_the_input(closed: Path) -> None:
    """With --force a capture can be rewritten in place: it is read to its end first."""
    assert run("import", closed, "-o", closed, "--force").exit_code == 0
    assert rows_in(closed) == rows_of([EVENTS])


@pytest.mark.parametrize("words", [("import",), ("cat", "--format", "kcap")])
def test_a_capture_never_goes_to_a_terminal(
    words: tuple[str, ...], tmp_path: Path, closed: Path
) -> None:
    """`-o -` with a capture needs a pipe or a file; the refusal says so."""
    code, printed = on_a_terminal(*words, closed, "-o", "-", folder=tmp_path)

    assert code == 1
    assert b"not written to a terminal" in printed
    assert b"hint: " in printed
    assert b"KCP" not in printed


def test_colour_is_for_terminals(tmp_path: Path, closed: Path) -> None:
    """Colour on a terminal only, unless --color or NO_COLOR say otherwise."""
    color = b"\x1b["
    assert color in on_a_terminal("cat", closed, folder=tmp_path)[1]
    assert color not in on_a_terminal("cat", closed, folder=tmp_path, NO_COLOR="1")[1]
    assert color not in on_a_terminal("cat", closed, "--color", "never", folder=tmp_path)[1]
    assert color not in run("cat", closed).stdout_bytes
    assert color in run("cat", closed, "--color", "always").stdout_bytes
    plain = re.sub(rb"\x1b\[[0-9;]*m", b"", run("cat", closed, "--color", "always").stdout_bytes)
    assert plain == run("cat", closed).stdout_bytes


def test_kcap_names_need_no_suffix(
    tmp_path: Path, closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-o events` writes events.kcap, `-k events` reads it; what exists wins."""
    monkeypatch.chdir(tmp_path)
    assert run("import", closed, "-o", "events").exit_code == 0
    assert (tmp_path / "events.kcap").is_file()
    assert not (tmp_path / "events").exists()

    assert lines_of("replay", "-k", "events") == lines_of("cat", "events.kcap")
    assert lines_of("replay", "-k", "events.kcap") == lines_of("cat", "events.kcap")
    (tmp_path / "events").write_bytes(capture([]))
    assert lines_of("replay", "-k", "events") == []

    assert run("replay").exit_code == 2
    assert run("replay", "-k", "events", "closed.kcap").exit_code == 2


def test_names_that_are_no_text_are_printed_safely(kcap: Kcap, tmp_path: Path) -> None:
    """Undecodable and steering names come out escaped, in messages and in reports."""
    for raw in (b"\xff\xfe.kcap", b"a\x1b[31m.kcap", "\u202ea.kcap".encode()):
        path = os.fsdecode(raw)
        (tmp_path / path).write_bytes(capture())
        for verb in ("info", "verify"):
            done = kcap(verb, path, PYTHONIOENCODING="utf-8:strict")
            assert done.returncode == 0, done.stderr
            assert b"\x1b" not in done.stdout
            assert "\u202e".encode() not in done.stdout
            assert json.loads(kcap(verb, "--json", path).stdout)["file"] == path
        missing = kcap("cat", f"no{path}")
        copied = kcap("import", path, "-o", f"new{path}")
        assert (missing.returncode, copied.returncode) == (1, 0)
        assert b"\x1b" not in missing.stderr + copied.stderr


@pytest.mark.parametrize("name", ["closed.kcap", "events.jsonl", "events.jsonl.gz"])
def test_every_format_is_read_from_a_pipe(
    name: str, kcap: Kcap, closed: Path, foreign: Path
) -> None:
    """`kcap cat -` on an input that cannot be sought prints what `kcap cat FILE` prints."""
    packed = foreign.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(foreign.read_bytes()))
    path = {p.name: p for p in (closed, foreign, packed)}[name]

    piped = kcap("cat", "-", "--format", "jsonl", stdin=path.read_bytes())

    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == run("cat", path, "--format", "jsonl").stdout_bytes
    assert piped.stdout


@pytest.mark.root
@pytest.mark.timeout(60)
def test_a_recording_can_be_watched_while_it_is_kept(tmp_path: Path) -> None:
    """record -o - | tee FILE | cat - ends with the same events on both sides, all verified."""
    done = shell(
        "(for i in $(seq 60); do /bin/true; sleep 0.1; done) & "
        "kcap record -o - --duration 2 | tee c.kcap | kcap cat --format jsonl - > seen.jsonl",
        tmp_path,
    )

    assert done.returncode == 0, done.stderr
    assert run("verify", tmp_path / "c.kcap").exit_code == 0
    seen = (tmp_path / "seen.jsonl").read_bytes()
    assert seen == run("cat", tmp_path / "c.kcap", "--format", "jsonl").stdout_bytes
    assert seen.count(b"\n") >= 10
