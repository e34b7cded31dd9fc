"""Talking to systemd: its program systemctl, by absolute path and without a shell."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from kcap.errors import KcapError, OutputError, PrivilegeError
from kcap.tools import service_unit

_PROGRAMS: Final = (Path("/usr/bin"), Path("/bin"))
_TIMEOUT_S: Final = 600
"""Longer than any start or stop of a unit of ours may take."""

_SHOWN_LINES: Final = 50
_TEXT_BYTES: Final = 1 << 20

# Times in UTC, words in English, and nothing of the caller's surroundings.
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", "SYSTEMD_COLORS": "0"}


@dataclass(frozen=True, slots=True)
class Systemd:
    """The service manager of this host."""

    units: Path = Path("/etc/systemd/system")
    """Where an administrator's units are."""
    running: Path = Path("/run/systemd/system")
    """A folder that is there where systemd runs, as sd_booted(3) says."""
    programs: tuple[Path, ...] = _PROGRAMS
    """Folders in which its programs are looked for."""

    def check(self) -> None:
        """Refuse where systemd does not run, or this user may not change anything.

        Raises:
            KcapError: Another service manager runs this host, or none.
            PrivilegeError: This needs root.
        """
        self.check_runs()
        if os.geteuid() != 0:
            raise PrivilegeError(
                "services are root's", expected="root", hint="the same with sudo, or as root"
            )

    def check_runs(self) -> None:
        """Refuse where systemd does not run.

        Raises:
            KcapError: Another service manager runs this host, or none.
        """
        if not self.running.is_dir():
            raise KcapError(
                "systemd does not run this host",
                file=str(self.running),
                expected="a host that systemd has booted",
                hint="let what supervises services here run 'kcap record';"
                " 'kcap service install --print' shows how",
            )

    def path(self, name: str) -> Path:
        """Where a service's unit file is, or comes to lie.

        Args:
            name: The service, without ``.service``.

        Returns:
            The path.
        """
        return self.units / f"{name}.service"

    def captures(self, name: str) -> str:
        """The folder of a service that kcap has installed.

        Args:
            name: The service, without ``.service``.

        Returns:
            The folder.

        Raises:
            KcapError: There is no such service, or it is not kcap's.
        """
        path = self.path(name)
        try:
            with path.open("rb") as stream:
                text = stream.read(service_unit.UNIT_BYTES).decode(errors="replace")
        except FileNotFoundError:
            raise KcapError(
                f"there is no service {name!r} of kcap's", file=str(path), hint=_INSTALL
            ) from None
        except OSError as e:
            raise KcapError(f"can't be read: {e.strerror}", file=str(path)) from e
        folder = service_unit.captures_of(text)
        if folder is None:
            raise KcapError(
                "this unit was not written by kcap, and is left alone",
                file=str(path),
                hint="give another --name",
            )
        return folder

    def call(self, *words: str) -> None:
        """Run systemctl.

        Args:
            words: Its arguments.

        Raises:
            KcapError: It failed; the hint names the journal.
        """
        done = self._run("systemctl", *words)
        if done.returncode:
            said = _text(done.stderr).strip().splitlines()[:1]
            raise KcapError(
                f"systemctl {words[0]} failed: {said[0] if said else f'code {done.returncode}'}"
            )

    def properties(self, name: str, *wanted: str) -> dict[str, str]:
        """What systemd knows of a service.

        Args:
            name: The service, without ``.service``.
            wanted: Names of properties.

        Returns:
            Their values; empty ones are left out.

        Raises:
            KcapError: It cannot be asked.
        """
        done = self._run("systemctl", "show", f"{name}.service", f"--property={','.join(wanted)}")
        if done.returncode:
            raise KcapError(f"systemd does not answer: {_text(done.stderr).strip()}")
        lines = (line.partition("=") for line in _text(done.stdout).splitlines())
        return {key: value for key, _, value in lines if value}

    def journal(self, name: str) -> list[str]:
        """What kcap has last said in the journal.

        Args:
            name: The service, without ``.service``.

        Returns:
            Lines that kcap began with its name, and hints; none where the journal is not readable.
        """
        words = ("-u", f"{name}.service", "-n", str(_SHOWN_LINES), "-o", "cat", "--no-pager", "-q")
        try:
            done = self._run("journalctl", *words)
        except KcapError:
            return []  # a host without a journal: what systemctl said stays
        lines = _text(done.stdout).splitlines()
        return [line for line in lines if line.startswith(("kcap: ", "hint: "))]

    def _run(self, program: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        found = next((p / program for p in self.programs if (p / program).is_file()), None)
        if found is None:
            folders = " or ".join(map(str, self.programs))
            raise KcapError(f"there is no {program} in {folders}", hint="is systemd installed?")
        try:
            return subprocess.run(  # noqa: S603  (no shell, an absolute path)
                [found, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=_ENVIRONMENT,
                cwd="/",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise KcapError(f"{program} did not end within {_TIMEOUT_S} s") from None
        except OSError as e:
            raise KcapError(f"can't be run: {e.strerror}", file=str(found)) from e


_INSTALL: Final = "'kcap service install' makes one; --name says which is meant"


def _text(output: bytes) -> str:
    return output[-_TEXT_BYTES:].decode(errors="replace")


def utc(text: str | None) -> datetime | None:
    """A time as systemctl prints it.

    Args:
        text: ``Sat 2026-11-21 15:49:53 UTC``; nothing, or ``n/a``, for never.

    Returns:
        The time.
    """
    try:
        return datetime.strptime(text or "", "%a %Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC)
    except ValueError:
        return None


def write_unit(path: Path, text: str, *, force: bool) -> None:
    """Write a unit file.

    Args:
        path: Where.
        text: Its text.
        force: Replace one that is there.

    Raises:
        OutputError: There is one, or it cannot be written.
    """
    target = path.with_name(f".{path.name}.{os.getpid()}") if force else path
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(target, flags, 0o644), "w", encoding="utf-8") as stream:
            stream.write(text)
            os.fchmod(stream.fileno(), 0o644)  # whatever the umask; others may read a unit
            stream.flush()
            os.fsync(stream.fileno())
        if force:
            target.replace(path)
    except FileExistsError:
        raise OutputError(
            "there is such a unit already",
            file=str(path),
            hint="give another --name, or --force to replace it",
        ) from None
    except OSError as e:
        raise OutputError(f"can't be written: {e.strerror}", file=str(path)) from e
