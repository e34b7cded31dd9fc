"""The service: what each of its verbs has systemd do.

tests/test_service_machine.py shows it in a Debian system; here a program of ours stands for
systemctl and writes down what it is asked.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from cli_support import EVENTS
from click.testing import CliRunner, Result
from support import capture

from kcap import trust
from kcap.tools import cli, service, service_unit
from kcap.tools.cli import main
from kcap.tools.systemd import Systemd

if not sys.platform.startswith("linux"):
    pytest.skip("systemd is Linux's", allow_module_level=True)

_SYSTEMCTL = """#!/bin/sh
echo "$@" >> {folder}/asked
if [ "$1" = show ]; then cat {folder}/properties; exit; fi
if [ -e {folder}/fails ] && {{ [ "$1" = start ] || [ "$1" = restart ]; }}; then
    echo "Job for kcap.service failed." >&2; exit 1
fi
"""

_RUNNING = {
    "ActiveState": "active",
    "SubState": "running",
    "ActiveEnterTimestamp": "Sat 2026-11-21 15:49:53 UTC",
    "MainPID": "4711",
    "ExecMainCode": "0",
    "ExecMainStatus": "0",
    "UnitFileState": "enabled",
    "NRestarts": "2",
    "Result": "success",
    "StatusText": "12 events, 0 lost",
    "MemoryCurrent": "83886080",
}
_STOPPED = {
    "ActiveState": "inactive",
    "SubState": "dead",
    "ActiveEnterTimestamp": "",
    "ExecMainExitTimestamp": "Sat 2026-11-21 15:59:53 UTC",
    "MainPID": "0",
    "ExecMainCode": "1",
    "ExecMainStatus": "3",
    "StatusText": "",
    "MemoryCurrent": "[not set]",
}


class Host:
    """A host on which programs of ours stand for systemd's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.systemd = Systemd(folder / "units", folder / "running", (folder / "programs",))
        self.captures = folder / "captures"
        for path in (self.systemd.units, self.systemd.running, self.systemd.programs[0]):
            path.mkdir()
        self._program("systemctl", _SYSTEMCTL.format(folder=shlex.quote(str(folder))))
        self.told({})

    def _program(self, name: str, text: str) -> None:
        path = self.systemd.programs[0] / name
        path.write_text(text)
        path.chmod(0o755)

    def told(self, *properties: dict[str, str]) -> None:
        """What systemctl says of the service from now on."""
        known = {name: value for one in properties for name, value in one.items()}
        lines = [f"{name}={value}\n" for name, value in known.items()]
        (self.folder / "properties").write_text("".join(lines))

    def fails(self, *journal: str) -> None:
        """From now on nothing starts."""
        (self.folder / "fails").touch()
        self._program("journalctl", f"#!/bin/sh\nprintf '%s\\n' {shlex.join(journal)}\n")

    def asked(self) -> list[str]:
        """What systemctl was asked to change, since the last time."""
        path = self.folder / "asked"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line for line in lines if not line.startswith("show ")]

    def run(self, *words: str | Path) -> Result:
        """Run ``kcap service`` here."""
        return self.call("service", *words)

    def call(self, *words: str | Path) -> Result:
        """Run kcap here."""
        given = [str(word) for word in words]
        return CliRunner().invoke(main, given, prog_name="kcap", obj=self.systemd)

    def install(self, *words: str) -> Result:
        """Install the service; its captures are in a folder of ours."""
        return self.run("install", "--output-folder", self.captures, *words)

    @property
    def unit(self) -> Path:
        """The unit file."""
        return self.systemd.path("kcap")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with systemd, on which we are root."""
    if os.geteuid() != 0:
        monkeypatch.setattr(trust, "check", lambda _: None)  # all of this is ours, not root's
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return Host(tmp_path)


# Installing it


def test_install_writes_a_unit_and_enables_it(host: Host) -> None:
    """0644 however the umask is, with options of the recording; --now starts it, too."""
    before = os.umask(0o077)
    try:
        result = host.install("--events", "process,net", "--now", "--note", "for good")
    finally:
        os.umask(before)

    assert result.exit_code == 0, result.stderr
    assert host.asked() == [
        "daemon-reload",
        "enable --quiet kcap.service",
        "start kcap.service",
    ]
    assert host.unit.stat().st_mode & 0o7777 == 0o644
    assert host.captures.stat().st_mode & 0o7777 == 0o700
    assert '--events process,net --note "for good"\n' in host.unit.read_text()
    assert "--now" not in host.unit.read_text()
    assert str(host.unit) in result.stderr
    assert result.stdout == ""


def test_without_now_nothing_is_started(host: Host) -> None:
    """It starts at the next boot."""
    assert host.install().exit_code == 0
    assert host.asked() == ["daemon-reload", "enable --quiet kcap.service"]


def test_a_unit_that_is_there_is_not_replaced_unasked(host: Host) -> None:
    """Neither where we write, nor one of the distribution's; --force replaces it."""
    elsewhere = host.folder / "elsewhere"
    elsewhere.write_text("theirs")
    host.unit.symlink_to(elsewhere)
    refused = host.install()
    assert (refused.exit_code, host.asked()) == (1, [])
    assert "--force" in refused.stderr
    assert elsewhere.read_text() == "theirs"

    host.told({"FragmentPath": "/lib/systemd/system/kcap.service"})
    host.unit.unlink()
    refused = host.install()
    assert (refused.exit_code, host.unit.exists()) == (1, False)
    assert "/lib/systemd/system/kcap.service" in refused.stderr

    host.unit.symlink_to(elsewhere)
    assert host.install("--force").exit_code == 0
    assert host.unit.read_text().startswith(service_unit.MARK)
    assert not host.unit.is_symlink()
    assert elsewhere.read_text() == "theirs"


@pytest.mark.parametrize(
    ("words", "added"),
    [
        ("", "--split-size 256M --keep 16"),
        ("--keep 3", "--split-size 256M --keep 3"),
        ("--split-time 1h", "--keep 16 --split-time 1h"),
        ("--split-size 1M --keep 2", "--split-size 1M --keep 2"),
        ("--ring 60s --on-signal", "--keep 16 --ring 60s --on-signal"),
    ],
)
def test_a_recording_without_end_stays_within_bounds(
    host: Host, words: str, added: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of 256M, 16 of them, or what is asked for instead."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/bin/kill")
    printed = host.install("--print", *words.split()).stdout

    assert f"/%H.kcap {added}\n" in printed
    asking = "USR1" if "--ring" in words else "HUP"  # which would end a ring
    assert f"kill -{asking} $MAINPID\n" in printed


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--no-such-option",), 2, "--no-such-option"),
        (("--events", "nosuchevent"), 2, "nosuchevent"),
        (("-w", "ps.nam = 'x'"), 2, "ps.nam"),
        (("-o", "x.kcap"), 2, "--output-folder"),
        (("--ring", "60s"), 2, "--on-signal"),
        (("--split-size", "1K"), 2, "1M or more"),
        (("--name", "a/b"), 2, "is no name"),
    ],
)
def test_options_that_record_refuses_are_refused_at_once(
    host: Host, words: tuple[str, ...], code: int, said: str
) -> None:
    """Not at the next boot, when nobody looks."""
    result = host.install(*words)

    assert (result.exit_code, host.asked()) == (code, [])
    assert said in result.stderr
    assert not host.unit.exists()


def test_a_kcap_that_is_only_found_from_here_is_refused(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service starts elsewhere, without our environment; nothing is written then."""
    monkeypatch.setattr(sys, "executable", "/bin/false")

    result = host.install()

    assert (result.exit_code, host.asked(), host.unit.exists()) == (1, [], False)
    assert "does not start outside" in result.stderr
    assert "venv" in result.stderr


def test_a_bundle_is_started_by_its_launcher(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python finds nothing by itself; a script of pip's lies beside Python, not above kcap."""
    above = Path(service.__file__).absolute().parent.parent
    for launcher, program in (
        (above / "kcap", f"{above}/kcap"),
        (above / ".venv/bin/kcap", f"{Path(sys.executable).absolute()} -I -m kcap.tools"),
    ):
        monkeypatch.setattr(sys, "argv", [str(launcher)])
        assert f"\nExecStart={program} record -o " in host.install("--print").stdout


@pytest.mark.root
def test_a_kcap_that_others_can_change_is_refused(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can change what root's service executes is root at the next boot."""
    python = host.folder / "python"
    python.symlink_to(Path(sys.executable).absolute())
    monkeypatch.setattr(sys, "executable", str(python))
    os.lchown(python, 65534, 65534)
    refused = host.install()
    assert (refused.exit_code, host.asked(), host.unit.exists()) == (1, [], False)
    assert str(python) in refused.stderr

    os.lchown(python, 0, 0)
    assert "others can change" not in host.install().stderr


def test_print_shows_the_unit_and_changes_nothing(tmp_path: Path) -> None:
    """Where there is no systemd, and for users, too."""
    host = Host(tmp_path)
    host.systemd.running.rmdir()

    result = host.install("--print")

    assert result.exit_code == 0
    assert result.stdout.startswith(service_unit.MARK)
    assert (host.asked(), host.unit.exists(), host.captures.exists()) == ([], False, False)


@pytest.mark.parametrize("verb", ["install", "start", "stop", "restart", "remove"])
def test_users_and_other_service_managers_are_refused(
    host: Host, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with what to do instead."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    user = host.run(verb)
    assert (user.exit_code, host.asked()) == (1, [])
    assert "sudo" in user.stderr

    host.systemd.running.rmdir()
    elsewhere = host.run(verb)
    assert (elsewhere.exit_code, host.asked()) == (1, [])
    assert "systemd does not run this host" in elsewhere.stderr
    assert "kcap record" in elsewhere.stderr


# Starting, stopping, removing


def test_a_failed_start_tells_what_kcap_said_last(host: Host) -> None:
    """Its last error and hint, out of the journal, and where the rest is."""
    host.install()
    host.fails("kcap: older", "something else", "kcap: /x: can't be written", "hint: mkdir /x")

    result = host.run("start")

    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "kcap: systemctl start failed: Job for kcap.service failed.",
        "kcap: /x: can't be written",
        "hint: mkdir /x",
        "hint: all it said: journalctl -u kcap",
    ]


@pytest.mark.parametrize("verb", ["start", "stop", "restart"])
def test_verbs_have_systemd_do_it(host: Host, verb: str) -> None:
    """One call each; the short name of the verb, too."""
    host.install()
    host.told(_RUNNING)
    host.asked()

    assert host.run(verb).exit_code == 0
    assert host.asked() == [f"{verb} kcap.service"]
    assert host.call(f"{verb}-service").exit_code == 0
    assert host.asked() == [f"{verb} kcap.service"]


def test_a_limit_that_was_met_no_longer_counts(host: Host) -> None:
    """Who starts a failed service by hand has repaired something."""
    host.install()
    host.told({"ActiveState": "failed"})
    host.asked()

    host.run("start")

    assert host.asked() == ["reset-failed kcap.service", "start kcap.service"]


def test_remove_takes_the_unit_and_leaves_the_captures(host: Host) -> None:
    """Stopped and disabled first; where the captures stay is said."""
    host.install()
    (host.captures / "a.kcap").write_bytes(capture())
    host.asked()

    result = host.run("remove")

    assert result.exit_code == 0
    assert host.asked() == ["disable --quiet --now kcap.service", "daemon-reload"]
    assert not host.unit.exists()
    assert (host.captures / "a.kcap").exists()
    assert str(host.captures) in result.stderr


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "remove", "status"])
def test_units_of_others_are_left_alone(host: Host, verb: str) -> None:
    """And a service that there is not is said to be none."""
    missing = host.run(verb)
    assert (missing.exit_code, host.asked()) == (1, [])
    assert "kcap service install" in missing.stderr

    host.unit.write_text("[Service]\nExecStart=/bin/true\n")
    theirs = host.run(verb)
    assert (theirs.exit_code, host.asked()) == (1, [])
    assert "not written by kcap" in theirs.stderr
    assert host.unit.exists()


# Its status


@pytest.fixture
def running(host: Host) -> Host:
    """A service that runs and has two captures, of which the older is damaged."""
    host.install()
    for name, content, age in (("a", b"x", 60), ("b", capture(closed=False), 0)):
        path = host.captures / f"{name}.kcap"
        path.write_bytes(content)
        if age:
            os.utime(path, (age, age))
    (host.captures / "notes.txt").write_text("not a capture")
    host.told(_RUNNING)
    return host


def test_status_shows_the_service_and_its_newest_capture(running: Host) -> None:
    """Exit code 0 while it records."""
    result = running.run("status", "--json")
    found = json.loads(result.stdout)

    size = len(capture(closed=False))
    assert result.exit_code == 0
    assert found.items() >= {
        "active": True, "enabled": True, "pid": 4711, "restarts": 2, "files": 2,
        "bytes": size + 1, "since": "2026-11-21T15:49:53Z", "exit_code": None, "ending": None,
        "folder": str(running.captures), "memory_bytes": 80 << 20,
        "status_text": "12 events, 0 lost",
    }.items()  # fmt: skip
    assert found["newest"]["file"] == str(running.captures / "b.kcap")
    assert (found["newest"]["events"], found["newest"]["bytes"]) == (EVENTS.rows, size)
    assert found["newest"]["state"] in ("open", "torn")

    text = running.run("status").stdout
    for shown in ("active (running)", "starts at boot", "4711", "12 events, 0 lost", "2 files"):
        assert shown in text


@pytest.mark.parametrize(
    ("properties", "code", "said"),
    [
        ({}, 3, "something was lost"),
        ({"ExecMainStatus": "1", "Result": "exit-code"}, 1, "failed"),
        ({"ExecMainStatus": "2", "Result": "exit-code"}, 2, "wrong usage"),
        ({"ExecMainStatus": "226", "Result": "exit-code"}, 226, "systemd could not start it"),
        ({"ExecMainCode": "2", "ExecMainStatus": "9", "Result": "oom-kill"}, 137, "memory"),
        ({"ExecMainCode": "3", "ExecMainStatus": "6", "Result": "watchdog"}, 134, "SIGABRT"),
        ({"ExecMainStatus": "1", "Result": "start-limit-hit"}, 1, "too often"),
        ({"ExecMainCode": "2", "ExecMainStatus": "99", "Result": "brand-new"}, 227, "brand-new"),
    ],
)
def test_status_says_what_an_exit_code_means(
    running: Host, properties: dict[str, str], code: int, said: str
) -> None:
    """Of a service that no longer runs; kcap's own codes, signals, and why systemd ended it."""
    running.told(_RUNNING, _STOPPED, properties)

    result = running.run("status")

    assert result.exit_code == 1
    assert f"exit code {code}, " in result.stdout
    assert said in result.stdout
    assert "2026-11-21T15:59:53Z" in result.stdout
    assert "4711" not in result.stdout


def test_status_goes_on_where_captures_cannot_be_read(running: Host) -> None:
    """A damaged newest one, and a folder that is away, are said and hide nothing else."""
    os.utime(running.captures / "a.kcap")
    damaged = running.run("status")
    assert damaged.exit_code == 0
    assert "a.kcap: 1 B, " in damaged.stdout

    shutil.rmtree(running.captures)
    away = running.run("status")
    assert away.exit_code == 0
    assert "which cannot be read" in away.stdout


def test_stop_says_how_the_capture_ended(running: Host) -> None:
    """With its exit code and the newest capture."""
    (running.captures / "b.kcap").write_bytes(capture())
    running.told(_RUNNING, _STOPPED)

    result = running.run("stop")

    assert "exit code 3, done, but something was lost" in result.stderr
    assert "b.kcap: closed, " in result.stderr


def test_the_short_names_are_hidden_and_the_same() -> None:
    """``kcap install-service`` and so on: what other programs call them."""
    group = main.get_command(None, "service")  # type: ignore[arg-type]
    assert isinstance(group, cli.VerbGroup)
    for name in ("install", "start", "stop", "restart", "remove"):
        assert main.get_command(None, f"{name}-service") is group.commands[name]  # type: ignore[arg-type]
        assert cli._VERBS[f"{name}-service"].hidden


@pytest.mark.parametrize("verb", ["install", "start", "stop", "restart", "status", "remove"])
def test_each_verb_has_help_and_a_manual_page(host: Host, verb: str) -> None:
    """With examples first; `kcap man` takes both words, and no third one."""
    helped, page = host.run(verb, "--help"), host.call("man", "service", verb)

    assert (helped.exit_code, page.exit_code) == (0, 0)
    assert helped.stdout.index("Examples:") < helped.stdout.index("Options:")
    assert f"kcap service {verb}" in helped.stdout
    assert f"kcap-service-{verb} - " in page.stdout
    assert host.call("man", "service", verb, verb).exit_code == 2
