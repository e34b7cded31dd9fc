"""The loader: a compiled object runs in this kernel, and what cannot is said."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from btf_support import Maker, probe
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import (
    DamagedError,
    KcapError,
    LimitError,
    NotACaptureError,
    PrivilegeError,
    TruncatedError,
)
from kcap.readers.live.bpf import elf, loader, syscalls, system
from kcap.readers.live.bpf.btf import Btf
from kcap.readers.live.bpf.elf import ElfObject
from kcap.readers.live.bpf.loader import Loaded, load
from kcap.readers.live.bpf.ring import Ring

GETPPID = 110
"""The system call that the object watches, unless told otherwise."""
FOUND = ("on_enter", "report")
"""Its programs that every kernel takes."""


@pytest.fixture(scope="module")
def kernel() -> Btf:
    """The types of this machine's kernel."""
    try:
        return Btf.of_kernel()
    except KcapError as error:
        pytest.skip(str(error))


@pytest.fixture
def loaded(kernel: Btf) -> Iterator[Loaded]:
    """The object in this kernel, watching this process, not attached yet."""
    with load(probe(), kernel, constants={"watched_pid": os.getpid()}, programs=FOUND) as made:
        yield made


def hits(held: Loaded) -> int:
    """How often the watched call was counted, on all processors."""
    counts = held.maps["counts"].get_each(0)
    return sum(struct.unpack_from("<Q", count)[0] for count in counts)


def open_files() -> set[str]:
    """What this process has open, but for the list itself."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{fd.name}:{fd.readlink()}")
    return found


@pytest.mark.root
def test_records_arrive_with_fields_of_the_kernel(loaded: Loaded) -> None:
    """Each watched call is counted, jumps to the other program and becomes a record."""
    loaded.set_tail_call("next", 1, "report")
    loaded.attach_all()
    ring = Ring(loaded.maps["events"].fd, loaded.maps["events"].definition.max_entries)
    for _ in range(100):
        os.getppid()
    loaded.detach("on_enter")
    os.getppid()

    block = ring.take()
    records = [struct.unpack_from("<IIQc", block.data, at) for at in block.offsets]
    assert records == [(os.getpid(), os.getppid(), GETPPID, b"x")] * 100
    assert hits(loaded) == 100
    assert loaded.unavailable == ("task_struct.__no_such_field",)
    assert list(loaded.links) == []
    ring.release()
    assert ring.waiting_bytes == 0


@pytest.mark.root
def test_nothing_runs_before_it_is_attached(loaded: Loaded) -> None:
    """Negative control of the counts: loaded alone, or with another number, it sees nothing."""
    os.getppid()
    assert hits(loaded) == 0

    assert loaded.attach("on_enter") == loaded.links["on_enter"]
    os.getpgid(0)
    assert hits(loaded) == 0
    os.getppid()
    assert hits(loaded) == 1, "without a place to jump to, it goes on"


@pytest.mark.root
def test_constants_and_sizes_are_those_given(kernel: Btf) -> None:
    """Constants of 4 and 8 bytes reach the program; a map has the size that was asked for."""
    constants = {"watched_pid": os.getpid(), "watched_call": 39}
    with load(probe(), kernel, constants=constants, sizes={"seen": 3}, programs=FOUND) as held:
        held.attach_all()
        libc = ctypes.CDLL(None)
        libc.syscall(39)
        seen = held.maps["seen"]
        for key in range(3):
            seen.set(key, bytes([key]) * 40)

        assert hits(held) == 1
        with pytest.raises(KcapError, match="writing a BPF map: Argument list too long"):
            seen.set(3, bytes(40))


@pytest.mark.root
def test_maps_hold_what_is_put_in(loaded: Loaded) -> None:
    """Set, get, delete, and all entries in many calls or few."""
    seen = loaded.maps["seen"]
    wanted = {key: bytes([key % 251]) * 40 for key in range(4000)}
    for key, value in wanted.items():
        seen.set(key, value)

    assert {int.from_bytes(k, "little"): v for k, v in seen.items()} == wanted
    assert {int.from_bytes(k, "little") for k in seen.keys()} == set(wanted)  # noqa: SIM118
    assert seen.get(17) == wanted[17]
    assert seen.delete(17)
    assert not seen.delete(17)
    assert seen.get(17) is None
    assert len(list(seen.items())) == 3999
    with pytest.raises(KcapError, match="a value of 3 bytes for map seen: it takes 40"):
        seen.set(1, b"abc")
    with pytest.raises(KcapError, match="a key of 1 bytes for map seen: it takes 4"):
        seen.get(b"a")


@pytest.mark.root
def test_a_full_bucket_is_read_with_more_room(loaded: Loaded) -> None:
    """Asked for one entry at a time, the kernel refuses where two share a bucket."""
    seen = loaded.maps["seen"]
    for key in range(4000):
        seen.set(key, bytes(40))
    keys = [
        key
        for block, _ in system.lookup_batch(seen.fd, 4, 40, 1)
        for key in struct.unpack(f"<{len(block) // 4}I", block)
    ]

    assert sorted(keys) == list(range(4000))


@pytest.mark.root
def test_values_of_processors_are_apart(loaded: Loaded) -> None:
    """A map of counts has a value for each possible processor."""
    counts = loaded.maps["counts"]
    cpus = system.possible_cpus()
    counts.set(2, b"".join(struct.pack("<QII", cpu, cpu + 1, 0) for cpu in range(cpus)))

    values = [struct.unpack("<QII", value) for value in counts.get_each(2)]
    assert values == [(cpu, cpu + 1, 0) for cpu in range(cpus)]
    items = dict(counts.items_each())
    assert items[struct.pack("<I", 2)] == counts.get_each(2)
    assert counts.get(4) is None
    assert counts.get_each(4) == []


@pytest.mark.root
def test_what_the_kernel_refuses_is_said_or_listed(kernel: Btf) -> None:
    """A required program that fails is an error with the verifier's words, an optional one not."""
    programs = (*FOUND, "unsound", "nowhere")
    with pytest.raises(KcapError, match=r"unsound was refused(?s:.*)invalid mem access"):
        load(probe(), kernel, programs=programs)
    with load(probe(), kernel, programs=programs, optional=("unsound",)) as held:
        with pytest.raises(KcapError, match="no tracepoint no_such_tracepoint"):
            held.attach("nowhere")
        assert held.attach("unsound") is None
    with load(probe(), kernel, programs=programs, optional=programs) as held:
        held.attach_all()

        assert set(held.refused) == {"unsound", "nowhere"}
        assert set(held.links) == {"on_enter"}


@pytest.mark.root
def test_closing_gives_everything_back(kernel: Btf) -> None:
    """No descriptor, program or attachment stays, also when a load fails half way."""
    probe()
    files, programs = open_files(), set(system.program_ids())
    with load(probe(), kernel, programs=FOUND) as held:
        held.attach_all()
        numbers = {held.info(name).id for name in FOUND}
        assert numbers <= set(system.program_ids())
        assert open_files() > files
        inherited = subprocess.run(["ls", "/proc/self/fd"], capture_output=True, check=True)
        assert not {str(m.fd).encode() for m in held.maps.values()} & set(inherited.stdout.split())
        held.close()
    with pytest.raises(KcapError):
        load(probe(), kernel, programs=(*FOUND, "unsound"))

    assert open_files() == files
    deadline = time.monotonic() + 10  # the kernel frees programs when no processor runs them
    while numbers & set(system.program_ids()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not numbers & set(system.program_ids()), programs


@pytest.mark.root
def test_a_program_is_described(loaded: Loaded) -> None:
    """What the kernel says of a program is what was loaded, by descriptor or by number."""
    info = loaded.info("on_enter")

    assert (info.type, info.name, info.uid) == (system.RAW_TRACEPOINT, "on_enter", 0)
    assert info.instructions_bytes >= len(loaded.object.programs["on_enter"].code)
    assert len(info.map_ids) == 3, "counts, next and the constants"
    assert len(info.tag) == 16
    again = system.program_fd(info.id)
    assert again is not None
    assert system.program_info(again) == info
    os.close(again)
    assert system.program_fd((1 << 31) - 1) is None


@pytest.mark.root
def test_tracepoints_of_tracefs(kernel: Btf) -> None:
    """A program of ``tp/`` runs where tracefs has its tracepoint; else the error names it."""
    try:
        loader.tracepoint_id("sched/sched_process_exit")
    except KcapError as error:
        assert "tracefs" in str(error)  # noqa: PT017
        with (
            load(probe(), kernel, programs=["on_tracepoint"]) as held,
            pytest.raises(KcapError, match="sched_process_exit"),
        ):
            held.attach_all()
        return
    with load(probe(), kernel, programs=["on_tracepoint"]) as held:
        held.attach_all()
        subprocess.run(["true"], check=True)
        counts = [struct.unpack_from("<Q", count)[0] for count in held.maps["counts"].get_each(1)]

        assert sum(counts) >= 1


def test_names_that_the_object_lacks() -> None:
    """A constant, a map or a program that is not there is named before the kernel is asked."""
    types = Btf(Maker().made())
    cases: list[tuple[dict[str, Any], str]] = [
        ({"constants": {"nope": 1}}, "no constant nope in the BPF object"),
        ({"sizes": {"nope": 1}}, "no map nope"),
        ({"programs": ["nope", "no"]}, "no program no, nope"),
    ]
    for options, said in cases:
        with pytest.raises(KcapError, match=said):
            load(probe(), types, **options)


WITHOUT = """
import sys
from kcap.errors import PrivilegeError
from kcap.readers.live.bpf.btf import Btf
from kcap.readers.live.bpf.loader import load
try:
    load(sys.stdin.buffer.read(), Btf.of_kernel(), programs=["on_enter"])
except PrivilegeError as error:
    print(error, error.hint)
"""


@pytest.mark.root
@pytest.mark.parametrize(
    "drop",
    [
        ["--reuid=65534", "--clear-groups"],
        ["--bounding-set=-bpf,-sys_admin", "--inh-caps=-bpf,-sys_admin"],
        ["--bounding-set=-perfmon,-sys_admin", "--inh-caps=-perfmon,-sys_admin"],
    ],
    ids=["an ordinary user", "root without CAP_BPF", "root without CAP_PERFMON"],
)
def test_missing_rights_are_named(drop: list[str], program: Any) -> None:
    """Who may not load programs is told which capabilities are needed."""
    command = [program("setpriv"), *drop, sys.executable, "-c", WITHOUT]
    done = subprocess.run(command, input=probe(), capture_output=True, check=True)
    said = done.stdout.decode()

    assert "CAP_BPF and CAP_PERFMON" in said, done.stderr
    assert "kcap doctor" in said


def test_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the numbers of system calls are not known, none is made."""
    syscalls.check_machine()
    fake = os.uname_result(("Linux", "host", "6.1", "#1", "aarch64"))
    monkeypatch.setattr(os, "uname", lambda: fake)
    with pytest.raises(KcapError, match="no recording with BPF on linux aarch64") as caught:
        syscalls.check_machine()
    assert "--source proc" in str(caught.value.hint)


def test_errors_of_the_kernel_say_what_can_be_done() -> None:
    """Missing rights are a PrivilegeError; the verifier's refusal is not."""
    assert isinstance(syscalls.failure(1, "map"), PrivilegeError)
    assert "Permission denied" in str(syscalls.failure(13, "program", log="\n  R1 invalid"))
    assert not isinstance(syscalls.failure(13, "program", log="\n  R1 invalid"), PrivilegeError)
    assert "no such call" in str(syscalls.failure(38, "map"))


def test_an_object_is_read_as_it_was_written() -> None:
    """Maps, constants and programs of the C file are there with their sizes."""
    content = ElfObject(probe())

    assert content.license == "Dual MIT/GPL"
    assert set(content.programs) == {*FOUND, "nowhere", "unsound", "on_tracepoint"}
    assert content.programs["report"].section == "raw_tp/call_report"
    assert {r.map for r in content.programs["on_tracepoint"].relocations} == {"counts"}
    assert content.maps["seen"] == elf.MapDefinition("seen", 1, 5000, 4, 40)
    assert content.maps["next"] == elf.MapDefinition("next", 3, 2, 4, 4)
    assert content.maps["events"] == elf.MapDefinition("events", 27, 65536)
    section, at, size = content.variables["watched_call"]
    assert content.constants[section][at : at + size] == struct.pack("<Q", GETPPID)


@given(st.integers(0, 1 << 32))
def test_a_damaged_object_is_an_error_of_ours(seed: int) -> None:
    """Cut or changed anywhere, nothing but a KcapError comes out."""
    rng = random.Random(seed)
    data = bytearray(probe())
    header = struct.unpack_from("<Q", data, 40)[0]
    if rng.random() < 0.3:
        del data[rng.randrange(len(data)) :]
    else:
        for _ in range(rng.choice((1, 1, 2, 8))):
            low = rng.choice((0, 0, header))
            at = low + int((len(data) - low) * rng.random() ** 3)
            data[at] ^= 1 << rng.randrange(8)
    try:
        content = ElfObject(bytes(data))
        loader._filled(content, {})
    except KcapError as error:
        assert str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("at", "value", "error", "said"),
    [
        (0, b"\x7fELE", NotACaptureError, "no BPF object"),
        (5, b"\x02", NotACaptureError, "no BPF object"),
        (18, b"\x3e", NotACaptureError, "no BPF object"),
        (40, b"\xff" * 8, TruncatedError, "sections are cut off"),
        (58, b"\x30", DamagedError, "table of sections"),
        (62, b"\xff", DamagedError, "table of sections"),
    ],
)
def test_what_is_no_object_is_said(
    at: int, value: bytes, error: type[KcapError], said: str
) -> None:
    """Another file, machine or byte order, and a cut one, each have their error."""
    data = bytearray(probe())
    data[at : at + len(value)] = value
    with pytest.raises(error, match=said):
        ElfObject(bytes(data), file="recorder")


def test_an_object_has_a_largest_size() -> None:
    """What no compiler makes is not read."""
    with pytest.raises(LimitError):
        ElfObject(probe() + bytes(elf.OBJECT_BYTES))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('int count = 1; SEC("raw_tp/a") int f(void *c) { return count++; }', "variable count"),
        (
            (
                "__attribute__((noinline)) int g(int a) { return a * 3; }"
                ' SEC("raw_tp/a") int f(void *c) { return g((long)c); }'
            ),
            "a call of g",
        ),
        ("int g(int a) { return a * 3; }", "functions of their own in .text"),
        ('SEC("raw_tp/a") int f(void *c) { extern int h(int); return h(1); }', "a call of h"),
        (
            (
                'struct { int (*type)[12]; int (*pinning)[1]; } m SEC(".maps");'
                ' SEC("raw_tp/a") int f(void *c) { return (long)&m; }'
            ),
            "map m has pinning",
        ),
    ],
)
def test_what_the_loader_does_not_do_is_said(
    line: str, said: str, program: Any, tmp_path: Path
) -> None:
    """Variables, functions and options of maps that it does not know are refused by name."""
    path = tmp_path / "a.c"
    path.write_text(
        "#define SEC(name) __attribute__((section(name), used))\n"
        f'char terms[] SEC("license") = "GPL";\n{line}\n'
    )
    command = [program("clang"), "-O2", "-g", "-target", "bpf", "-c", str(path), "-o", "-"]
    made = subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(KcapError, match=said):
        ElfObject(made.stdout)
