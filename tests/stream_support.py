"""Kernel programs for artifacts while something known happens in one process and its children."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pytest

from kcap.errors import PrivilegeError
from kcap.model.artifact import Gap
from kcap.readers.live.artifacts.kernel import CALL_BYTES, CONTENT_BYTES, ArtifactKernel, Sums
from kcap.readers.live.artifacts.streams import Finished, Streams
from kcap.readers.live.artifacts.triggers import Decoder, Trigger
from kcap.readers.live.artifacts.wanted import Wanted
from kcap.readers.live.bpf.program import Setup

_LIMIT_S = 60


class Seen(NamedTuple):
    """What became of it."""

    artifacts: list[Finished]
    triggers: list[Trigger]
    sums: Sums
    streams: Streams
    pid: int
    status: int
    ended: int
    """Streams of which the kernel's program said that they are at their end."""

    def of(self, kind: str, file_type: str | None = None) -> list[Finished]:
        """Artifacts of a kind, and of a type of file."""
        return [
            one
            for one in self.artifacts
            if one.artifact.kind == kind
            and (file_type is None or one.artifact.details.get("file_type") == file_type)
        ]


def sequence(length: int, start: int = 0) -> bytes:
    """What tests/workloads/passing.c passes on, and what the scripts of these tests do."""
    place = np.arange(start, start + length, dtype=np.uint64)
    return (place * 31 + (place >> np.uint64(8))).astype(np.uint8).tobytes()


SEQUENCE = (
    "def sequence(n, s=0):\n    return bytes((p * 31 + (p >> 8)) & 255 for p in range(s, s + n))\n"
)
"""The same for a script in a process of its own."""


def captured(one: Finished) -> bytes:
    """The bytes of an artifact that has no gap."""
    parts = list(one.artifact.content.parts())
    assert not any(isinstance(part, Gap) for part in parts), parts
    return b"".join(part for part in parts if not isinstance(part, Gap))


def measured(one: Finished, whole: bytes) -> tuple[int, dict[str | None, int]]:
    """How much of an artifact was captured, and what is missing, by reason.

    Each captured byte is compared with what passed at that place.
    """
    at = found = 0
    missing: dict[str | None, int] = {}
    for part in one.artifact.content.parts():
        if isinstance(part, Gap):
            missing[part.reason] = missing.get(part.reason, 0) + part.length
            at += part.length
            continue
        assert part == whole[at : at + len(part)], f"other bytes at {at}"
        at += len(part)
        found += len(part)
    return found, missing


def python(script: str) -> list[str]:
    """The command that runs a script."""
    return [sys.executable, "-S", "-c", SEQUENCE + script]


def keep(
    wanted: Wanted,
    command: Sequence[str],
    *,
    content_bytes: int = CONTENT_BYTES,
    call_bytes: int = CALL_BYTES,
    drain: bool = True,
    prepare: Callable[[ArtifactKernel], None] | None = None,
) -> Seen:
    """Run a command of which artifacts are kept.

    Args:
        wanted: What is to be kept.
        command: The command.
        content_bytes: Size of the ring of content.
        call_bytes: Copied of one call at most.
        drain: The ring is emptied meanwhile.
        prepare: Called before the command runs.

    Returns:
        What became of it.
    """
    pid = os.fork()
    if not pid:
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1):
                os.dup2(null, fd)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.execvp(command[0], list(command))
        finally:
            os._exit(127)
    os.waitpid(pid, os.WUNTRACED)
    try:
        setup = Setup((), {"scoped": 1, "want_tracked": 1}, members=lambda: [pid])
        kernel = ArtifactKernel(
            wanted, setup=setup, content_bytes=content_bytes, call_bytes=call_bytes
        )
    except PrivilegeError as error:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        pytest.skip(f"BPF is refused here: {error}")
    streams, decoder = Streams(kernel.types, wanted), Decoder(kernel.types)
    triggers: list[Trigger] = []
    try:
        if prepare is not None:
            prepare(kernel)
        kernel.attach()
        os.kill(pid, signal.SIGCONT)
        status = _followed(pid, kernel, streams, drain=drain)
        kernel.detach()
        _drain(kernel, streams)
        triggers += decoder.decode(kernel.triggers.take())
        kernel.triggers.release()
        streams.settle(kernel.totals())
        sums = kernel.sums()
    finally:
        kernel.close()
    assert decoder.damaged == streams.damaged == 0
    ended = sum(one.ended for one in streams._open.values())
    return Seen(list(streams.rest()), triggers, sums, streams, pid, status, ended)


def _followed(pid: int, kernel: ArtifactKernel, streams: Streams, *, drain: bool) -> int:
    descriptor = os.pidfd_open(pid)
    try:
        begun_s = time.monotonic()
        while not select.select([descriptor], [], [], 0.005)[0]:
            assert time.monotonic() < begun_s + _LIMIT_S, "it does not end"
            if drain:
                _drain(kernel, streams)
    finally:
        os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _drain(kernel: ArtifactKernel, streams: Streams) -> None:
    while True:
        block = kernel.content.take()
        streams.take(block)
        kernel.content.release()
        if not len(block.offsets):
            return
