"""Audit records as a kernel spells them, and recordings by the audit system."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from kcap.errors import KcapError
from kcap.model.batch import Batch, concat
from kcap.model.side import Heartbeat, Loss
from kcap.readers.live.audit.link import Control, Status
from kcap.readers.live.audit.recorder import AuditRecorder
from kcap.state import State

Row = dict[str, Any]

STAMP = "audit(1700000000.123:{serial}): "


def untrusted(raw: bytes) -> bytes:
    """Spell what a process chose: in quotes, or in hexadecimal where that would not be safe."""
    safe = all(0x21 <= byte <= 0x7E and byte != 0x22 for byte in raw)
    return b'"' + raw + b'"' if safe else raw.hex().upper().encode()


def execve(argv: Sequence[bytes], room: int = 7500) -> list[bytes]:
    """The texts of the EXECVE records of a program's arguments.

    Args:
        argv: The arguments.
        room: Bytes of a record's text; what does not fit goes on in the next one.

    Returns:
        A text a record.
    """
    texts, text = [], b"argc=%d" % len(argv)
    for place, item in enumerate(argv):
        spelled = untrusted(item)
        if len(text) + len(spelled) + 16 <= room:
            text += b" a%d=%s" % (place, spelled)
            continue
        length = len(item) if spelled.startswith(b'"') else len(spelled)
        text += b" a%d_len=%d" % (place, length)
        step = max(1, (room - 40) // 2)
        pieces = [item[at : at + step] for at in range(0, len(item), step)] or [b""]
        for number, piece in enumerate(pieces):
            if len(text) + 2 * len(piece) + 40 > room:
                texts.append(text)
                text = b""
            text += b" a%d[%d]=%s" % (place, number, untrusted(piece))
    return [*texts, text]


def line(kind: str, text: bytes, serial: int = 1) -> bytes:
    """A line of a log."""
    return f"type={kind} msg={STAMP.format(serial=serial)}".encode() + text


def execution(argv: Sequence[bytes], serial: int = 1, *, room: int = 7500) -> list[bytes]:
    """The lines that a log has of an execution."""
    told = b" ".join(
        [
            b"arch=c000003e syscall=59 success=yes exit=0 a0=1 a1=2 a2=3 a3=4 items=1 ppid=7",
            b"pid=%d auid=4294967295 uid=0 gid=0 euid=0 suid=0 fsuid=0 egid=0 sgid=0" % serial,
            b'fsgid=0 tty=(none) ses=4294967295 comm="x" exe="/bin/x" key=(null)',
        ]
    )
    path = b'item=0 name="/bin/x" inode=5 dev=fe:01 mode=0100755 ouid=0 ogid=0 nametype=NORMAL'
    return [
        line("SYSCALL", told, serial),
        *(line("EXECVE", text, serial) for text in execve(argv, room)),
        line("CWD", b'cwd="/"', serial),
        line("PATH", path, serial),
        line("PROCTITLE", b"proctitle=" + untrusted(b"x\0y"), serial),
    ]


def settings() -> tuple[Status, list[bytes]]:
    """How the host's audit system is; without its counters."""
    try:
        control = Control()
    except KcapError as error:
        pytest.skip(f"{error}")
    try:
        return control.status()._replace(lost=0, backlog=0), control.rules()
    except KcapError as error:
        pytest.skip(f"{error}")
    finally:
        control.close()


class Recording:
    """What the audit system gave while a block ran."""

    def __init__(self, source: AuditRecorder) -> None:
        self.source = source
        self.batches: list[Batch] = []

    @property
    def rows(self) -> list[Row]:
        """The events."""
        return concat(self.batches).to_pylist()

    @property
    def losses(self) -> list[Loss]:
        """What was lost."""
        return [side for b in self.batches for side in b.before if isinstance(side, Loss)]

    @property
    def beats(self) -> list[Heartbeat]:
        """The signs of life."""
        return [side for b in self.batches for side in b.before if isinstance(side, Heartbeat)]


@contextmanager
def recording(**options: Any) -> Iterator[Recording]:
    """Record what happens in the block; the test skips where this host refuses."""
    try:
        source = AuditRecorder(**options)
    except KcapError as error:
        pytest.skip(f"{error}")
    made, state = Recording(source), State()
    ready = threading.Event()

    def run() -> None:
        for batch in source.batches():
            made.batches.append(state.update(batch, resolve=True))
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(120)
        yield made
    finally:
        source.stop()
        thread.join(60)
        source.close()
    assert not thread.is_alive()
