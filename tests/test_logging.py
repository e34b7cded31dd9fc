"""The log: what is in it, that it is private, how it goes on in another file."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_support import run
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.errors import OutputError
from kcap.tools import logfile, logs
from kcap.tools.settings.model import LoggingSettings
from kcap.tools.settings.secrets import MASK, Known

ROOT = Path(__file__).parent.parent
OTHER = 1000
"""A user who is not root."""

LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (debug|info   |warning|error  ) replay\[\d+\]: (.*)"
)


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[Callable[..., logging.Logger]]:
    """Make loggers that write into a log of the test's folder."""
    made: list[tuple[logging.Logger, logging.Handler]] = []

    def make(known: Known | None = None, **settings: object) -> logging.Logger:
        path = str(tmp_path / "kcap.log")
        chosen = LoggingSettings(**{"file": path, **settings})  # type: ignore[arg-type]
        handler = logfile.opened(chosen, known or Known(), verb="replay")
        name = f"kcap-test-{len(made)}-{tmp_path.name}"
        logfile.attach(name, handler, chosen.level)
        made.append((logging.getLogger(name), handler))
        return made[-1][0]

    yield make
    for one, handler in made:
        one.removeHandler(handler)
        handler.close()


def lines_in(folder: Path) -> list[str]:
    """All lines of a log, from the oldest file on."""
    files = sorted(
        folder.glob("kcap.log*"), key=lambda p: -int(p.suffix[1:] if p.suffix != ".log" else 0)
    )
    return [line for file in files for line in file.read_text().splitlines()]


# What is in it


def test_a_run_is_in_the_log(tmp_path: Path, closed: Path) -> None:
    """Begin with command line and version, what it said, and the end with code and counts."""
    path = tmp_path / "kcap.log"

    result = run("--log-file", path, "replay", closed, "--where", "ps.pid = 0")

    told = [LINE.fullmatch(line) for line in path.read_text().splitlines()]
    texts = [found[2] for found in told if found is not None]
    assert len(texts) == len(told)
    assert texts[0].startswith("begins: ")
    assert texts[-1].startswith("ended with exit code 0, ")
    said = [line.removeprefix("kcap: ") for line in result.stderr.splitlines()]
    assert said
    assert texts[1:-1] == said
    assert re.search(r"exit code 0, \d+ events in, 0 events out$", texts[-1])


def test_an_error_is_in_the_log(tmp_path: Path) -> None:
    """With its level, and its exit code at the end."""
    path = tmp_path / "kcap.log"

    run("--log-file", path, "replay", tmp_path / "none.kcap")

    *_, error, end = path.read_text().splitlines()
    assert "error   replay[" in error
    assert "none.kcap: can't be opened" in error
    assert end.endswith("ended with exit code 1")


def test_stdout_does_not_depend_on_the_log(tmp_path: Path, closed: Path) -> None:
    """A replay prints the same bytes with and without."""
    words = ("replay", closed, "--format", "jsonl")

    assert run("--log-file", tmp_path / "kcap.log", *words).stdout == run(*words).stdout


def test_json_lines_have_what_is_to_be_searched(tmp_path: Path, closed: Path) -> None:
    """Time, level, verb, process and text; the end has numbers, the beginning the version."""
    path, file = tmp_path / "kcap.log", tmp_path / "kcap.yaml"
    file.write_text(f"logging: {{file: {path}, format: json}}")

    assert run("--config", file, "replay", closed).exit_code == 0

    found = [json.loads(line) for line in path.read_text().splitlines()]
    for one in found:
        assert set(one) >= {"time", "level", "verb", "pid", "message"}
        assert one["verb"] == "replay"
    assert "version" in found[0]
    assert found[-1]["exit_code"] == 0
    assert found[-1]["events_in"] == found[-1]["events_out"] > 0


@pytest.mark.parametrize(
    ("level", "expected"),
    [("debug", "abcd"), ("info", "bcd"), ("warning", "cd"), ("error", "d")],
)
def test_the_level_leaves_out_what_is_less(
    logger: Callable[..., logging.Logger], tmp_path: Path, level: str, expected: str
) -> None:
    """What is at least as bad is written."""
    one = logger(level=level)
    for text, write in zip("abcd", (one.debug, one.info, one.warning, one.error), strict=True):
        write(text)

    assert [line[-1] for line in lines_in(tmp_path)] == [*expected]


TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)


@settings(max_examples=50)
@given(text=TEXTS, form=st.sampled_from(["text", "json"]))
def test_a_record_is_one_line_without_controls(
    tmp_path_factory: pytest.TempPathFactory, text: str, form: str
) -> None:
    """Whatever it says; in JSON it is there as it was."""
    path = tmp_path_factory.mktemp("log") / "kcap.log"
    handler = logfile.opened(LoggingSettings(str(path), format=form), Known(), verb="x")
    handler.handle(logging.makeLogRecord({"msg": "%s", "args": (text,), "levelname": "INFO"}))
    handler.close()

    content = path.read_bytes()

    assert content.count(b"\n") == 1
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", content)
    if form == "json":
        assert json.loads(content)["message"] == text


def test_secrets_are_not_in_the_log(tmp_path: Path) -> None:
    """Neither of the command line nor of the settings, nor in what goes wrong with them."""
    path, file = tmp_path / "kcap.log", tmp_path / "kcap.yaml"
    file.write_text(f"record: {{note: !file {tmp_path}/word}}\nlogging: {{file: {path}}}")
    (tmp_path / "word").write_text("fish bone 77")
    known = Known()
    known.add("fish bone 77")
    handler = logfile.opened(LoggingSettings(str(path)), known, verb="x")
    one = logging.makeLogRecord({"msg": "%s said %s", "args": ("fish bone 77", "fish%20bone%2077")})
    one.exc_info = (ValueError, ValueError("no fish bone 77"), None)
    one.more = {"command": "kcap --x 'fish bone 77'", "count": 5}
    handler.handle(one)
    handler.close()
    run("--config", file, "replay", "https://ann:herring@h.example/x.kcap")

    content = path.read_text()

    assert content.count(MASK) >= 4
    for word in ("fish", "herring"):
        assert word not in content
    assert "ann:" in content


# Where it is


def test_a_log_is_private_and_is_continued(tmp_path: Path, closed: Path) -> None:
    """0600 from the first on, whatever the umask; another run writes behind it."""
    path = tmp_path / "kcap.log"
    before = os.umask(0)
    try:
        run("--log-file", path, "info", closed)
        first = path.read_text()
        run("--log-file", path, "info", closed)
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().startswith(first)
    assert path.read_text().count("begins: ") == 2


@pytest.mark.parametrize("kind", ["link", "folder", "fifo", "twin", "missing folder"])
def test_what_is_no_file_of_ones_own_is_no_log(tmp_path: Path, closed: Path, kind: str) -> None:
    """A link, a device, a file with another name: the run does not begin."""
    path, other = tmp_path / "kcap.log", tmp_path / "other"
    other.write_text("")
    if kind == "link":
        path.symlink_to(other)
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "twin":
        path.hardlink_to(other)
    else:
        path = tmp_path / "none" / "kcap.log"

    result = run("--log-file", path, "info", closed)

    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"kcap: {path}: the log " in result.stderr
    assert other.read_text() == ""


@pytest.mark.root
def test_another_users_file_is_no_log(tmp_path: Path, closed: Path) -> None:
    """Root writes nothing into what somebody has put there to read it."""
    path = tmp_path / "kcap.log"
    path.touch()
    os.chown(path, OTHER, OTHER)

    assert "the log is another user's" in run("--log-file", path, "info", closed).stderr


def test_a_log_of_the_host_that_is_not_ours_stops_nobody(
    tmp_path: Path, closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a file that nobody named it is a warning; in a named one it is an error."""
    from kcap.tools.settings import places

    file = tmp_path / "kcap.yaml"
    file.write_text(f"logging: {{file: {tmp_path}/none/kcap.log}}")
    monkeypatch.setattr(places, "folders", lambda _: iter([tmp_path]))
    for name in [name for name in os.environ if name.startswith("KCAP_")]:
        monkeypatch.delenv(name)

    found, named = run("info", closed), run("--config", file, "info", closed)

    assert found.exit_code == 0
    assert "kcap: warning: no log: " in found.stderr
    assert named.exit_code == 1
    monkeypatch.setenv("KCAP_LOGGING_FILE", str(tmp_path / "none" / "kcap.log"))
    assert run("info", closed).exit_code == 1


# When it is full


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 400), max_size=30),
    max_bytes=st.integers(1, 1000),
    keep=st.integers(0, 4),
)
def test_a_full_log_goes_on_in_another_file(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], max_bytes: int, keep: int
) -> None:
    """No file is larger, unless by one line; what is kept is the end of what was written."""
    folder = tmp_path_factory.mktemp("log")
    chosen = LoggingSettings(str(folder / "kcap.log"), max_bytes=max_bytes, keep=keep)
    handler = logfile.opened(chosen, Known(), verb="x")
    for number, size in enumerate(sizes):
        handler.handle(logging.makeLogRecord({"msg": f"{number} {'x' * size}"}))
    handler.close()

    files = [*folder.iterdir()]

    assert len(files) <= keep + 1
    for file in files:
        content = file.read_text()
        assert len(content) <= max_bytes or content.count("\n") == 1
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    numbers = [int(re.search(r": (\d+) ", line)[1]) for line in lines_in(folder)]  # type: ignore[index]
    assert numbers == [*range(len(sizes) - len(numbers), len(sizes))]
    if sizes:
        assert numbers
    if keep and len(files) <= keep:
        assert len(numbers) == len(sizes)


def test_several_processes_write_one_log(tmp_path: Path) -> None:
    """Each line once and whole, though any of them may find it full."""
    script = (
        "import logging, sys\n"
        "from kcap.tools import logfile\n"
        "from kcap.tools.settings.model import LoggingSettings\n"
        "from kcap.tools.settings.secrets import Known\n"
        "handler = logfile.opened(\n"
        "    LoggingSettings(sys.argv[1], max_bytes=4000, keep=900), Known(), verb='x')\n"
        "for number in range(300):\n"
        "    handler.handle(logging.makeLogRecord({'msg': f'{sys.argv[2]}-{number}'}))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "kcap.log"), name],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for name in "abc"
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]

    written = sorted(line.rpartition(" ")[2] for line in lines_in(tmp_path))

    assert written == sorted(f"{name}-{number}" for name in "abc" for number in range(300))
    assert len([*tmp_path.iterdir()]) > 2


def test_nobody_waits_for_who_was_stopped_while_it_turned(
    tmp_path: Path, logger: Callable[..., logging.Logger]
) -> None:
    """The file grows beyond its size meanwhile, and is turned afterwards."""
    one = logger(max_bytes=100, keep=3)
    one.info("first %s", "x" * 80)
    with (tmp_path / "kcap.log").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        one.info("second")
        assert len([*tmp_path.iterdir()]) == 1
    one.info("third")

    assert len([*tmp_path.iterdir()]) == 2
    assert [line.split()[3] for line in lines_in(tmp_path)] == ["first", "second", "third"]


def test_a_log_that_somebody_else_renames_goes_on_under_its_name(
    tmp_path: Path, logger: Callable[..., logging.Logger]
) -> None:
    """As logrotate does."""
    one = logger()
    one.info("first")
    (tmp_path / "kcap.log").rename(tmp_path / "kcap.log.1")
    one.info("second")

    assert "first" in (tmp_path / "kcap.log.1").read_text()
    assert "second" in (tmp_path / "kcap.log").read_text()


def test_a_log_that_can_no_longer_be_written_is_told_once(
    tmp_path: Path, logger: Callable[..., logging.Logger], capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on, and so does the log once that is possible again."""
    path = tmp_path / "kcap.log"
    one = logger()
    path.unlink()
    path.mkdir()
    one.info("lost")
    one.info("lost too")
    path.rmdir()
    one.info("there again")

    assert capsys.readouterr().err.count("no more log") == 1
    assert path.read_text().endswith("there again\n")


# Without rights


@pytest.mark.root
def test_what_a_process_without_rights_says_is_in_the_log(tmp_path: Path) -> None:
    """A recorder's worker may not make files: the log turns to others all the same."""
    folder = tmp_path / "log"
    folder.mkdir(mode=0o700)
    file = tmp_path / "kcap.yaml"
    file.write_text(
        f"logging: {{file: {folder}/kcap.log, format: json, max-size: 200, keep: 20}}\n"
        "record: {source: proc, duration: 300ms}\n"
    )

    done = subprocess.run(
        [sys.executable, "-m", "kcap.tools", "--config", str(file), "record", "-o", "x.kcap"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in lines_in(folder)]
    said = [line.removeprefix("kcap: ") for line in done.stderr.decode().splitlines()]
    assert any("events" in line for line in said)
    assert [one["message"] for one in found[1:-1]] == said
    assert len({one["pid"] for one in found}) == 1
    assert len([*folder.iterdir()]) > 2


def test_a_worker_can_say_no_more_than_text(tmp_path: Path) -> None:
    """What it sends is one record, with a level that there is, whatever it sends."""
    path = tmp_path / "kcap.log"
    handler = logfile.opened(LoggingSettings(str(path)), Known(), verb="x")
    logfile.attach(logs.NAME, handler, "info")
    logs._log.handler = handler
    try:
        for argument in (
            b"error\0plain",
            b"critical\0\x1b[2J\nforged",
            b"\xff",
            b"info\0" + b"x" * 60_000,
        ):
            logs.serve(argument)
    finally:
        logs._log.close()

    lines = path.read_text().splitlines()

    assert len(lines) == 4
    assert all("\x1b" not in line and len(line) < 20_000 for line in lines)
    assert lines[0].split()[1] == "error"
    assert lines[1].split()[1] == "info"


def test_a_log_that_is_not_wanted_is_not_written(tmp_path: Path, closed: Path) -> None:
    """Negative control: without settings nothing of this happens."""
    before = {*tmp_path.iterdir()}

    run("info", closed)

    assert {*tmp_path.iterdir()} == before
    with pytest.raises(OutputError):
        logfile.opened(LoggingSettings(str(tmp_path)), Known(), verb="x")
