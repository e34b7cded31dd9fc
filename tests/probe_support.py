"""A folder that looks like /proc, where reads hang; and who reads it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from kcap.readers.live.probe import Item, Op, Prober, Request

STAT = b"%d (%b) S 1 1 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 123 0 0\n"


class Host:
    """A folder that looks like /proc; in it, whoever opens a FIFO waits for ever.

    Args:
        folder: An empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, pid: int, *, hangs: str | None = None, cmdline: bytes = b"x\0") -> None:
        """Add a process.

        Args:
            pid: Its id.
            hangs: The file that hangs.
            cmdline: Its arguments.
        """
        of = self.folder / str(pid)
        for name in ("fd", "fdinfo", "task", "ns"):
            (of / name).mkdir(parents=True)
        content = {
            "stat": STAT % (pid, b"name %d" % pid),
            "status": b"Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n",
            "cgroup": b"0::/x\n",
            "comm": b"name %d\n" % pid,
            "cmdline": cmdline,
        }
        (of / "exe").symlink_to("/bin/x")
        for name, data in content.items():
            if name == hangs:
                os.mkfifo(of / name)
            else:
                (of / name).write_bytes(data)


def reader_of(prober: Prober) -> int:
    """The one reader that there is."""
    prober.read(Request(1, [Item(Op.CONTENT, "stat")]))
    (found,) = prober.pids - {supervisor_of(prober)}
    return found


def supervisor_of(prober: Prober) -> int:
    """The process that all readers are children of."""
    mine = f"\t{os.getpid()}\n".encode()
    (found,) = (
        pid for pid in prober.pids if b"PPid:" + mine in Path(f"/proc/{pid}/status").read_bytes()
    )
    return found


def gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has noticed."""
    try:
        return b") Z " in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return True


def ended(pids: frozenset[int], limit_s: float = 3) -> bool:
    """Whether processes end in time."""
    until_s = time.monotonic() + limit_s
    while not all(map(gone, pids)) and time.monotonic() < until_s:
        time.sleep(0.01)
    return all(map(gone, pids))
