"""Who reads /proc for a recorder: when they come and go, and what they may do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from probe_support import Host, ended, reader_of, supervisor_of

from kcap.guard import rights
from kcap.readers.live.probe import Prober
from kcap.readers.live.procfs import ProcFS


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """An empty host."""
    folder = tmp_path / "proc"
    folder.mkdir()
    return Host(folder)


@pytest.fixture
def probed(host: Host) -> Iterator[ProcFS]:
    """Its processes, read by a prober."""
    proc = ProcFS(str(host.folder), prober=Prober(str(host.folder)))
    yield proc
    proc.close()


def test_a_reader_that_ends_is_replaced(host: Host, probed: ProcFS) -> None:
    """Killed by anybody: the next one reads on, and what there is is told."""
    host.add(1)
    prober = probed.prober
    assert prober is not None
    for _ in range(3):
        reader, changes = reader_of(prober), prober.changes
        os.kill(reader, signal.SIGKILL)
        image = probed.image(1)
        assert image is not None
        assert image.cmdline == "x"
        assert reader_of(prober) != reader
        assert prober.changes > changes
    assert probed.losses("source") == []


def test_without_a_supervisor_it_is_said(host: Host, probed: ProcFS) -> None:
    """Nobody reads any more: no error, no wait, a loss; readers end with it."""
    host.add(1)
    prober = probed.prober
    assert prober is not None
    reader = reader_of(prober)
    os.kill(supervisor_of(prober), signal.SIGKILL)
    assert ended(frozenset({reader}))
    begun_s = time.monotonic()
    assert [probed.image(1), probed.image(1)] == [None, None]
    assert time.monotonic() - begun_s < 1
    (loss,) = probed.losses("source")
    assert (loss.kind, loss.count) == ("blind", 2)
    assert "has ended" in loss.reason


def test_nobody_has_to_ask_for_that_to_be_said(probed: ProcFS) -> None:
    """A recorder that reads /proc seldom would end as if nothing had happened: it is said, once."""
    prober = probed.prober
    assert prober is not None
    assert not prober.ended
    assert probed.losses("source") == [], "negative control"
    os.kill(supervisor_of(prober), signal.SIGKILL)
    assert ended(prober.pids)
    (loss,) = probed.losses("source")
    assert (loss.kind, loss.count) == ("blind", None)
    assert "has ended" in loss.reason
    assert probed.losses("source") == []
    probed.close()
    assert not prober.ended, "who closes it ends it"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_to_the_group_do_not_end_it(host: Host, probed: ProcFS, number: int) -> None:
    """Ctrl-C, or systemd, asks all to end: the recorder needs its readers until it has ended."""
    host.add(1)
    prober = probed.prober
    assert prober is not None
    pids = prober.pids | {reader_of(prober)}
    for pid in pids:
        os.kill(pid, number)
    assert probed.image(1) is not None
    assert prober.pids == pids


@pytest.mark.parametrize("way", ["close", "kill", "stuck"])
def test_nothing_is_left(host: Host, way: str) -> None:
    """It ends with its clients, also where they were killed, or a reader hangs."""
    host.add(1, hangs="cmdline" if way == "stuck" else None)
    code = (
        "import os, sys, signal; from kcap.readers.live.probe import *\n"
        "prober = Prober(sys.argv[1])\n"
        "items = [Item(Op.CONTENT, name) for name in ('stat', 'cmdline')]\n"
        "answer = prober.send(Request(1, items))\n"
        "way = sys.argv[2]\n"
        "if way != 'stuck': prober.wait(answer)\n"
        "print(*prober.pids, flush=True)\n"
        "prober.close() if way == 'close' else os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, str(host.folder), way]
    out = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=20)
    pids = frozenset(map(int, out.stdout.split()))
    assert len(pids) == 2
    assert ended(pids)


def test_a_pipe_behind_the_recorder_ends_with_it(host: Host) -> None:
    """Readers hold no descriptor of who made them: nobody waits for them at an end of file."""
    host.add(1)
    read, write = os.pipe()
    prober = Prober(str(host.folder))
    reader_of(prober)
    os.close(write)
    os.set_blocking(read, False)
    assert os.read(read, 1) == b"", "a reader that held the pipe would make this an error"
    os.close(read)
    prober.close()


@pytest.mark.root
def test_they_have_few_rights(host: Host, probed: ProcFS) -> None:
    """Two capabilities, no way to get more, no program to execute."""
    host.add(1)
    prober = probed.prober
    assert prober is not None
    reader_of(prober)
    assert len(prober.pids) == 2
    for pid in prober.pids:
        held = rights.held(str(pid))
        assert set(rights.names(held.permitted)) <= set(rights.PROBER)
        assert held.effective == held.permitted
        assert held.bounding == held.permitted
        assert held.no_new_privs
        assert held.seccomp == 2
    assert rights.held().seccomp != 2 or rights.held().permitted, "negative control"


@pytest.mark.root
def test_a_worker_without_rights_reads_through_it() -> None:
    """A process that was forked and became nobody sees what only the prober may."""
    proc = ProcFS.probed()
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    rights.become(rights.User("nobody", 65534, 65534))
                    direct, seen = ProcFS().image(child.pid), proc.image(child.pid)
                    hidden = direct is not None and direct.exe is None
                    status = 0 if hidden and seen and seen.exe else 2
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert proc.image(child.pid) is not None, "we still read, too"
        finally:
            child.kill()
            proc.close()
