"""Derived events of what really happens: a program does things to this kernel, and has views."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from derived_support import Event, arguments
from test_tracee_written import reread, shapes, told, written

from kcap.model.batch import Batch, concat, without_state
from kcap.readers.live.bpf.program import Setup
from kcap.readers.live.bpf.recorder import BpfRecorder
from kcap.replay.derived import Derivation, names

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="kernel without BTF"),
]

WORK = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
page = libc.mmap(None, 4096, 7, 0x22, -1, 0)
assert libc.mprotect(ctypes.c_void_p(page), 4096, 5) == 0
os.chdir(sys.argv[1])
with open("dropped", "wb", buffering=0) as file:
    file.write(bytes([0x7f]) + b"ELF" + bytes(60))
os.open("dropped", 0o10000000)
os.chmod("dropped", 0o755)
os.rename("dropped", "sub/../moved")
os.symlink("moved", "link")
os.unlink("link")
os.rmdir("sub")
with socket.socket() as listener, socket.socket() as client:
    listener.bind(("127.0.0.1", 0))
    listener.listen(5)
    client.connect(listener.getsockname())
    again = libc.dup(client.fileno())
    accepted, _ = listener.accept()
    accepted.close()
    os.close(again)
try:
    os.execv("moved", ["moved", "no program"])
except OSError:
    pass
with open("script", "w") as file:
    file.write("#!/bin/sh\\nexit 0\\n")
os.chmod("script", 0o755)
os.execv("./script", ["./script", "an argument"])
"""
EVENTS = (
    *("open", "openat", "write", "mmap", "mprotect", "chmod", "fchmodat", "rename", "renameat"),
    *("renameat2", "symlink", "symlinkat", "unlink", "unlinkat", "rmdir", "socket", "bind"),
    *("listen", "connect", "dup", "accept", "accept4", "execve", "chdir"),
)


@pytest.fixture(scope="module")
def happened() -> Iterator[tuple[Path, Batch]]:
    """The folder in which the program worked, and its events with their views."""
    recorder = BpfRecorder(setup=Setup(frozenset(EVENTS)))
    found: list[Batch] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "sub").mkdir()
        pids: list[int] = []

        def work() -> None:
            with subprocess.Popen([sys.executable, "-c", WORK, folder]) as process:
                pids.append(process.pid)
            recorder.stop()

        worker = threading.Thread(target=work)
        try:
            stage = Derivation(names())
            for batch in recorder.batches():
                if worker.ident is None:
                    worker.start()
                found.append(without_state(stage.process(batch)))
        finally:
            worker.join()
            recorder.close()
        whole = concat(found)
        yield folder, whole.take((whole.numpy("pid", -1) == pids[0]).nonzero()[0].astype("int32"))


def of(happened: tuple[Path, Batch], event: str) -> list[Event]:
    """The views of that name, and with each its base event."""
    return [r for r in happened[1].to_pylist() if r["event"] == event and "derived_from" in r]


def paths(happened: tuple[Path, Batch], event: str, argument: str = "pathname") -> list[str]:
    """An argument of the views of that name, seen from the folder in which the program worked."""
    folder = f"{happened[0]}/"
    found = [arguments(row).get(argument, "") for row in of(happened, event)]
    return [path.removeprefix(folder) for path in found if path.startswith(folder)]


def test_files(happened: tuple[Path, Batch]) -> None:
    """What was opened, written, moved and deleted is at the hooks with whole paths."""
    opened = paths(happened, "security_file_open")
    assert [p for p in opened if p == "dropped"] == ["dropped"], "O_PATH opens nothing"
    assert paths(happened, "magic_write") == ["dropped", "script"]
    assert paths(happened, "security_inode_rename", "old_path") == ["dropped"]
    assert paths(happened, "security_inode_rename", "new_path") == ["moved"]
    assert paths(happened, "security_inode_symlink", "linkpath") == ["link"]
    assert paths(happened, "security_inode_unlink") == ["link"], "rmdir is another hook"
    assert paths(happened, "chmod_common") == ["dropped", "script"]
    opens = [r for r in of(happened, "security_file_open") if r["derived_from"] == "openat"]
    row = next(row for row in opens if row["arg_pathname"].endswith("/script"))
    stat = (happened[0] / "script").stat()
    assert row["arg_inode"] == stat.st_ino
    assert row["arg_dev"] == os.major(stat.st_dev) << 20 | os.minor(stat.st_dev)
    assert row["arg_flags"] & 0o3 == os.O_WRONLY


def test_memory(happened: tuple[Path, Batch]) -> None:
    """Memory that was written and is then executed raises two alerts, and the second says so."""
    alerts = [arguments(row) for row in of(happened, "mem_prot_alert")]
    assert [alert["alert"] for alert in alerts] == [1, 4]
    assert (alerts[1]["prev_prot"], alerts[1]["prot"]) == (7, 5)


def test_sockets(happened: tuple[Path, Batch]) -> None:
    """Each step of a connection is at its hook, with its address."""
    (connected,) = of(happened, "security_socket_connect")
    assert '"sin_addr":"127.0.0.1"' in connected["arg_remote_addr"]
    (bound,) = of(happened, "security_socket_bind")
    assert '"sin_port":"0"' in bound["arg_local_addr"]
    (listening,) = of(happened, "security_socket_listen")
    assert listening["arg_backlog"] == 5
    assert listening["arg_local_addr"].count('"sin_port":"0"') == 0
    (accepted,) = of(happened, "security_socket_accept")
    assert accepted["arg_sockfd"] == listening["arg_sockfd"]
    (copied,) = of(happened, "socket_dup")
    assert copied["arg_oldfd"] == connected["arg_sockfd"]
    assert len(of(happened, "security_socket_create")) == 2


def test_executions(happened: tuple[Path, Batch]) -> None:
    """An execution has its view before it happens; one that was no program a check alone."""
    tried = [row for row in of(happened, "security_bprm_check") if row["derived_from"] == "execve"]
    assert [row["arg_pathname"] for row in tried] == [f"{happened[0]}/moved"]
    last = of(happened, "execve")[-1]
    assert last["arg_pathname"] == "./script"
    assert last["process_name"].startswith("python")


def test_as_json_of_tracee(happened: tuple[Path, Batch]) -> None:
    """Written as Tracee's JSON and read again, recorded and derived events are the same."""
    back = reread(written(happened[1]))
    assert back.rows == happened[1].rows > 100
    assert told(back) == told(happened[1])
    assert shapes(back) == shapes(happened[1])
