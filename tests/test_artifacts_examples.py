"""Tracee's introduction to artifacts, its options as they are printed there, and kcap's own beside.

Apart from the folder, and from the name of the shell that is followed: a shell of the test's own,
which runs before anybody records, as the one of somebody who tries the examples.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pyarrow as pa
import pytest
from packets_live_support import Listening
from test_artifacts_record import FOLLOWED, SHELL, Row, content, events, listed, recording

from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/sys/kernel/btf/vmlinux").exists(),
    reason="needs root and the types of the kernel",
)

PRINTED: Final = ("--output", "json", *FOLLOWED, "--output", "option:parse-arguments")
NONE: Final = ("--output", "none", *FOLLOWED)
NAME: Final = "r.kcap"


@contextmanager
def shell(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A shell that waits for what is typed."""
    path = folder / SHELL
    shutil.copy2(Path("/bin/bash").resolve(), path)
    made = subprocess.Popen([path], stdin=subprocess.PIPE, text=True, cwd=folder)
    assert made.stdin is not None
    try:
        yield made
    finally:
        with suppress(BrokenPipeError):
            made.stdin.close()
        made.wait(30)


def recorded(folder: Path, words: Sequence[str | Path], typed: str, *codes: int) -> str:
    """Record what a shell does that was there before; what the recorder said."""
    done = folder / "typed-and-done"
    with shell(folder) as typing, recording(folder, *words, "-o", NAME) as made:
        assert typing.stdin is not None
        typing.stdin.write(f"{typed}\ntouch {done}\n")
        typing.stdin.flush()
        end = time.monotonic() + 60
        while not done.exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.7)
        said = made.stop(*codes)
    done.unlink()
    return said


def of_kind(folder: Path, kind: str) -> list[Row]:
    """The artifacts of a kind."""
    return [each for each in listed(folder / NAME, 0, 3) if each["kind"] == kind]


def script(folder: Path, text: str) -> str:
    """A command that runs a Python program."""
    path = folder / "program.py"
    path.write_text(textwrap.dedent(text))
    return f"{sys.executable} -S -E {path}"


def below(folder: Path) -> dict[str, Path]:
    """The files in Tracee's folder, by their names from ``out`` on."""
    out = folder / "tracee/out"
    return {str(p.relative_to(out)): p for p in sorted(out.rglob("*")) if p.is_file()}


def test_write_testing_123(tmp_path: Path) -> None:
    """``write='/tmp/*'``, typed into a shell that was there before: no execution tells of it."""
    words = (*PRINTED, "--capture", f"dir:{tmp_path}/tracee/", "--capture", "write=/tmp/*")
    target = Path(f"/tmp/kcap-testing-{os.getpid()}.txt")
    try:
        recorded(tmp_path, words, f"echo write testing 123 > {target}")
    finally:
        target.unlink(missing_ok=True)

    (found,) = [a for a in of_kind(tmp_path, "write") if a["path"] == str(target)]
    inode = found["details"]["inode"]
    (name,) = [n for n in below(tmp_path) if n.endswith(f"inode-{inode}")]
    assert name.startswith("host/write.dev-")
    assert below(tmp_path)[name].read_bytes() == b"write testing 123\n"
    assert f"{name} {target}\n" in below(tmp_path)["written_files"].read_text()
    (opened,) = [e for e in events(tmp_path / NAME, "openat") if e["ord"] == found["ord"]]
    assert opened["process_name"] == SHELL


def test_read_testing_123(tmp_path: Path) -> None:
    """``read:type=pipe`` and ``read:fd=stdin``: of what cat reads exactly that line, in a file."""
    words = (*PRINTED, "--capture", f"dir:{tmp_path}/tracee/")
    words += ("--capture", "read:type=pipe", "--capture", "read:fd=stdin")
    recorded(tmp_path, words, "echo read testing 123 | cat")

    (found,) = [a for a in of_kind(tmp_path, "read") if a["details"]["process_name"] == "cat"]
    inode = found["details"]["inode"]
    (name,) = [n for n in below(tmp_path) if n.endswith(f"inode-{inode}")]
    assert below(tmp_path)[name].read_bytes() == b"read testing 123\n"


def test_executed_files(tmp_path: Path) -> None:
    """``exec``: a copy of /bin/ls that runs, though it was executed twice only one."""
    words = (*PRINTED, "--capture", f"dir:{tmp_path}/tracee/", "--capture", "exec")
    recorded(tmp_path, words, "/bin/ls >/dev/null\n/bin/ls >/dev/null")

    names = [n for n in below(tmp_path) if n.startswith("host/exec.") and n.endswith(".ls")]
    assert len(names) == 1
    copy = below(tmp_path)[names[0]]
    assert copy.read_bytes() == Path("/bin/ls").read_bytes()
    with pytest.raises(PermissionError):
        subprocess.run([copy], check=False)
    copy.chmod(0o700)
    assert subprocess.run([copy, "/"], check=True, capture_output=True).stdout


_UNPACKER: Final = """
    import ctypes, mmap, time
    secret = mmap.mmap(-1, 4096)
    secret[:9] = b'in memory'
    code = mmap.mmap(-1, 8192, prot=7)
    code[:8] = b'unpacked'
    at = ctypes.addressof(ctypes.c_char.from_buffer(code))
    assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(at), 8192, 5)
    time.sleep(0.5)
"""


def test_memory_files(tmp_path: Path) -> None:
    """``--output none``, ``mem``: the region, in a file named as Tracee's, and no events."""
    words = (*NONE, "--capture", f"dir:{tmp_path}/tracee/", "--capture", "mem")
    recorded(tmp_path, words, script(tmp_path, _UNPACKER))

    (found,) = of_kind(tmp_path, "mem")
    details = found["details"]
    copy = below(tmp_path)[f"host/bin.pid-{details['pid']}.ts-{details['time_ns']}"]
    assert copy.read_bytes() == b"unpacked".ljust(8192, b"\0")
    assert events(tmp_path / NAME) == []


def test_all_that_a_process_has_mapped(tmp_path: Path) -> None:
    """``mem:maps``: other regions, too, with what the process had elsewhere; ``mem`` has one."""
    recorded(tmp_path, (*NONE, "--capture", "mem:maps"), script(tmp_path, _UNPACKER), 0, 3)

    found = of_kind(tmp_path, "mem")
    assert len(found) > 5
    assert all(a["details"]["process_name"].startswith("python") for a in found)
    regions = [content(tmp_path / NAME, a) for a in found if a["complete"]]
    assert any(region[:9] == b"in memory" for region in regions)
    assert any(region[:8] == b"unpacked" for region in regions)


_TRAFFIC: Final = """
    import socket, struct
    query = bytes.fromhex('822501000001000000000000') + b'\\3www\\3uol\\3com\\2br\\0\\0\\1\\0\\1'
    with socket.socket(type=socket.SOCK_DGRAM) as plain:
        plain.sendto(query, ('127.0.0.1', 53))
        plain.sendto(b'x' * 300, ('127.0.0.1', 9))
    server = socket.create_server(('127.0.0.1', 0))
    with socket.create_connection(server.getsockname()) as client:
        peer, _ = server.accept()
        client.send(b'y' * 700)
        peer.recv(9999)
        peer.close()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.sendto(struct.pack('>BBHHH', 8, 0, 0xF7FD - 1, 1, 1), ('127.0.0.1', 0))
"""
_PROTOCOLS: Final = {"icmp": 1, "tcp": 6, "udp": 17}
_NETWORK: Final = ("--capture", "network", "--capture", "pcap-options:filtered")


@pytest.mark.parametrize(
    ("event", "more", "protocols", "folders"),
    [
        ("net_packet_ipv4", (), {1, 6, 17}, {"single"}),
        ("net_packet_dns", (), {17}, {"single"}),
        (
            "net_packet_icmp",
            ("--capture", "pcap:process,container,command"),
            {1},
            {"processes", "containers", "commands"},
        ),
        (
            "net_packet_tcp",
            ("--capture", "pcap:single,command", "--capture", "pcap-snaplen:default"),
            {6},
            {"single", "commands"},
        ),
    ],
)
def test_network_files(
    tmp_path: Path, event: str, more: tuple[str, ...], protocols: set[int], folders: set[str]
) -> None:
    """``--events net_packet_…``, filtered: those packets, in the files that are asked for."""
    out = f"dir:{tmp_path}/tracee"
    words = ("--events", event, *FOLLOWED, *_NETWORK, *more, "--capture", out)
    said = recorded(tmp_path, words, script(tmp_path, _TRAFFIC))

    found = events(tmp_path / NAME, "net_packet")
    assert {each["arg_protocol"] for each in found} == protocols, said
    if event.endswith("dns"):
        assert {each.get("arg_dst_port") for each in found} == {53}
    names = {name.split("/")[1].split(".")[0] for name in below(tmp_path) if "pcap/" in name}
    assert names - {"packets"} == folders
    assert f"kcap: {len(found)} sighting" in said
    for name, path in below(tmp_path).items():
        if name.endswith(".pcap"):
            assert {e["arg_protocol"] for e in events(path, "net_packet")} == protocols, name
    if event.endswith("tcp"):
        payloads = {e["arg_captured"] - e["arg_payload_offset"] for e in found}
        assert max(payloads) == 96


@pytest.mark.parametrize(
    ("said", "payload"),
    [("headers", 0), ("max", 700), ("256b", 256), ("1kb", 700), (None, 96)],
)
def test_snap_lengths(tmp_path: Path, said: str | None, payload: int) -> None:
    """``pcap-snaplen:``: so many bytes behind the header of layer 4, whatever the packet has."""
    words = [*NONE, "--capture", "network"]
    words += ["--capture", f"pcap-snaplen:{said}"] if said else []
    recorded(tmp_path, words, script(tmp_path, _TRAFFIC))

    sent = [e for e in events(tmp_path / NAME, "net_packet") if e["arg_length"] == 20 + 32 + 700]
    assert sent
    assert {e["arg_captured"] - e["arg_payload_offset"] for e in sent} == {payload}


_LOADER: Final = """
    import ctypes, struct
    insns = ctypes.create_string_buffer(bytes.fromhex('b7000000020000009500000000000000'))
    licence = ctypes.create_string_buffer(b'GPL')
    attributes = struct.pack('=IIQQIIQII16s', 1, 2, ctypes.addressof(insns),
                             ctypes.addressof(licence), 0, 0, 0, 0, 0, b'test_prog')
    held = ctypes.create_string_buffer(attributes.ljust(128, bytes(1)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(321, 5, held, len(attributes)) >= 0, ctypes.get_errno()
"""


def test_bpf_programs(tmp_path: Path) -> None:
    """``clear-dir``, ``bpf``: the bytecode, named by the program and the SHA-256 of its bytes."""
    words = (*NONE, "--capture", "clear-dir", "--capture", "bpf")
    words += ("--capture", f"dir:{tmp_path}/tracee")
    recorded(tmp_path, words, script(tmp_path, _LOADER))

    (found,) = of_kind(tmp_path, "bpf")
    insns = bytes.fromhex("b7000000020000009500000000000000")
    digest = hashlib.sha256(insns).hexdigest()
    pid = found["details"]["pid"]
    assert list(below(tmp_path)) == [f"host/bpf.name-test_prog.pid-{pid}.{digest}"]
    assert next(iter(below(tmp_path).values())).read_bytes() == insns


def test_packets_wait_for_what_the_source_tells() -> None:
    """Else a process sends before its execution is told of, and is in no scope yet."""
    heard = Listening(0)
    mine = ("127.0.0.1", 9)
    try:
        heard.take()
        told_ns = time.time_ns()
        with socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.sendto(b"z" * 713, mine)
        time.sleep(0.05)

        heard.take(constant_times(told_ns))
        early = [row for row in heard.rows if row["arg_length"] == 28 + 713]
        heard.take(constant_times(time.time_ns()))
        heard.take()
        late = [row for row in heard.rows if row["arg_length"] == 28 + 713]
    finally:
        heard.end()

    assert early == []
    assert len(late) == 1


def constant_times(ts: int) -> Batch:
    """A batch of one event that happened then."""
    return Batch(1, {"ts": Column(TypeClass.I64, pa.array([ts], pa.int64()))})
