"""The service in a Debian system with systemd: installed, started, killed, refused, removed.

tests/kernels/service_guest.py is what runs there.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

import pytest
from kernels import debian, vm
from live_support import info, rows

from kcap.guard.rights import BITS

pytestmark = [pytest.mark.kernels, pytest.mark.long, pytest.mark.timeout(1800)]

SERIES: Final = "6.1"
"""Debian 12's own."""

TIMEOUT_S: Final = 1500


class Machine:
    """What was said and recorded there."""

    def __init__(self, folder: Path) -> None:
        self.said: dict[str, Any] = json.loads((folder / "said.json").read_text())
        self.captures = sorted((folder / "captures").glob("*.kcap"))

    def code(self, step: str) -> int:
        """How a command ended."""
        code: int = self.said[step]["code"]
        return code

    def stderr(self, step: str) -> str:
        """What it complained about."""
        text: str = self.said[step]["stderr"]
        return text

    def executed(self, name: str) -> list[Path]:
        """The captures in which a program of the guest's is executed."""
        where = f"ps.exe = '/opt/kcap/programs/{name}'"
        return [path for path in self.captures if rows(path, where)]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """One boot, in which everything is done."""
    folder = tmp_path_factory.mktemp("machine")
    image, disk = vm.image(SERIES), debian.disk()
    names = ("kcap", "readers", "writers", "tools", "spec", "pyproject.toml")
    guest = Path(vm.__file__).with_name("service_guest.py")
    brought = [*((vm.ROOT / name, name) for name in names), (guest, guest.name)]
    run = f"python3 {guest.name} {debian.HOME}/out"
    begun_s = time.monotonic()
    console = vm.boot(image, vm.archive(brought, run), folder, first=disk, timeout_s=TIMEOUT_S)
    if "exit code 0" not in console:
        pytest.fail(f"the machine did not do what it should:\n{console}", pytrace=False)
    print(f"systemd on Linux {image.version}: {time.monotonic() - begun_s:.0f} s")
    return Machine(folder / "out")


def test_it_is_started_when_it_records(machine: Machine) -> None:
    """`install --now` comes back then, and systemd shows what it does; before, there is none."""
    assert machine.code("status of none") == 1
    assert "kcap service install" in machine.stderr("status of none")
    assert machine.code("install") == 0, machine.stderr("install")
    assert machine.said["running"]["ActiveState"] == "active"
    assert machine.said["running"]["StatusText"].startswith("recording")
    assert (machine.code("install again"), "--force" in machine.stderr("install again")) == (
        1,
        True,
    )


def test_it_has_the_rights_of_a_recorder_and_no_others(machine: Machine) -> None:
    """None can be gained; what works on events is an ordinary user's, without any."""
    allowed = sum(1 << bit for bit in BITS.values())
    processes = machine.said["processes"]

    assert all(one["NoNewPrivs"] == "1" for one in processes)
    assert not any(int(one["CapBnd"], 16) & ~allowed for one in processes)
    workers = [one for one in processes if one["Uid"].split()[0] != "0"]
    assert len(workers) == 1
    assert (int(workers[0]["CapEff"], 16), workers[0]["Seccomp"]) == (0, "2")


def test_status_shows_the_newest_capture(machine: Machine) -> None:
    """While it is written, and after the service has stopped."""
    running = json.loads(machine.said["status"]["stdout"])
    assert (machine.code("status"), running["active"], running["enabled"]) == (0, True, True)
    assert running["pid"] == int(machine.said["running"]["MainPID"])
    assert running["folder"] == "/var/lib/kcap"
    assert running["newest"]["state"] in ("open", "torn")
    assert running["newest"]["heartbeats"] > 0

    stopped = json.loads(machine.said["status when stopped"]["stdout"])
    assert (machine.code("status when stopped"), stopped["active"]) == (1, False)
    assert stopped["exit_code"] in (0, 3)  # emulated, times may rightly be called blind
    assert stopped["newest"]["state"] == "closed"


@pytest.mark.filterwarnings("ignore:.*torn:kcap.errors.LossWarning")  # the killed one is
def test_each_program_is_in_a_capture(machine: Machine) -> None:
    """Before and after a reload, a restart and a kill; each closed, but for the killed one."""
    names = ("first", "reloaded", "second", "third")
    places = [machine.executed(name) for name in names]

    assert [len(place) for place in places] == [1, 1, 1, 1]
    assert len({place[0] for place in places}) == len(names), "no new file was begun"
    assert machine.executed("never") == []
    states = [info(place[0])["state"] for place in places]
    assert [states[0], states[1], states[3]] == ["closed"] * 3
    assert states[2] != "closed", "the kill did not meet the recording"


def test_systemd_starts_it_anew_after_a_kill(machine: Machine) -> None:
    """By itself, once; a stop that was asked for is none."""
    assert machine.code("restart") == 0
    assert machine.said["after a kill"]["ActiveState"] == "active"
    assert machine.said["after a kill"]["NRestarts"] == "1"
    assert machine.code("stop") == 0
    assert machine.said["stopped"]["ActiveState"] == "inactive"
    assert "closed" in machine.stderr("stop")


@pytest.mark.parametrize(
    ("step", "why"),
    [("start without a folder", "No such file"), ("start read-only", "Read-only file system")],
)
def test_what_goes_wrong_at_the_start_is_said(machine: Machine, step: str, why: str) -> None:
    """kcap's own words, from the journal, by whoever started it; afterwards it starts."""
    assert machine.code(step) == 1
    assert "/data/captures" in machine.stderr(step)
    assert why in machine.stderr(step)
    assert "journalctl -u other" in machine.stderr(step)
    assert machine.code("start at last") == 0
    assert machine.said["other captures"] == 1


def test_start_up_errors_are_in_the_journal(machine: Machine) -> None:
    """As one line, and no traceback."""
    journal = machine.said["journal without a folder"]["stdout"]

    [line] = [line for line in journal.splitlines() if "No such file" in line]
    assert line.startswith("kcap: /data/captures/machine-000001.kcap: ")
    assert "Traceback" not in journal


def test_remove_leaves_nothing_but_captures(machine: Machine) -> None:
    """And takes no unit of somebody else's."""
    assert machine.code("remove another") == 0
    assert machine.code("remove theirs") == 1
    assert machine.code("remove") == 0
    assert machine.said["unit stays"] is False
    assert machine.said["units"]["stdout"] == machine.said["failed units"]["stdout"] == ""
    assert machine.captures
