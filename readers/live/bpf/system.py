"""bpf(2) and its neighbours, called through the C library that Python runs on.

Nothing here holds state: a call takes numbers and bytes and gives numbers and bytes, or an error
that says which call the kernel refused, and what a user can do.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from kcap.errors import KcapError
from kcap.readers.live.bpf.syscalls import (
    PERF_EVENT_OPEN,
    address,
    bpf,
    failure,
    libc,
    syscall,
)

RAW_TRACEPOINT: Final = 17
"""BPF_PROG_TYPE_RAW_TRACEPOINT."""
TRACEPOINT: Final = 5
"""BPF_PROG_TYPE_TRACEPOINT."""

MAP_HASH, MAP_ARRAY, MAP_PROG_ARRAY = 1, 2, 3
MAP_PERCPU_HASH, MAP_PERCPU_ARRAY = 5, 6
MAP_LRU_HASH, MAP_LRU_PERCPU_HASH = 9, 10
MAP_RINGBUF: Final = 27
PER_CPU: Final = frozenset({MAP_PERCPU_HASH, MAP_PERCPU_ARRAY, MAP_LRU_PERCPU_HASH, 21})
"""Maps that hold a value for each processor."""

READ_ONLY_IN_PROGRAMS: Final = 1 << 7
"""BPF_F_RDONLY_PROG."""

NAME_BYTES: Final = 15
"""What the kernel keeps of the name of a map or program."""

LOG_BYTES: Final = 4 << 20
"""Room for what the verifier says."""

LOG_LINES: Final = 12
"""How much of it an error shows: the end, where the reason stands."""

BATCH_ENTRIES: Final = 1 << 20
"""Most entries that are read with one call."""


_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _PROG_LOAD = range(6)
_RUN: Final = 10
_PROG_NEXT_ID, _MAP_NEXT_ID, _PROG_BY_ID, _MAP_BY_ID, _INFO = range(11, 16)
_RAW_TRACEPOINT_OPEN: Final = 17
_FREEZE: Final = 22
_LOOKUP_BATCH: Final = 24
_PERF_CLOEXEC: Final = 8
_SET_BPF: Final = 0x40042408
_ENABLE: Final = 0x2400


class ProgramInfo(NamedTuple):
    """What the kernel says about a program that it holds."""

    id: int
    type: int
    tag: str
    """The kernel's hash of the instructions, hexadecimal."""
    name: str
    load_time_ns: int
    """Since boot."""
    uid: int
    instructions_bytes: int
    map_ids: tuple[int, ...]
    run_time_ns: int
    """0 unless the sysctl kernel.bpf_stats_enabled is on; `run_count` too."""
    run_count: int
    recursion_misses: int
    """How often it was not run because it was running on that processor already."""


def create_map(
    name: str, kind: int, key_size: int, value_size: int, max_entries: int, flags: int = 0
) -> int:
    """Make a map.

    Returns:
        Its descriptor.

    Raises:
        PrivilegeError: This user may not.
        KcapError: The kernel refused, or knows no such map.
    """
    attributes = bytearray(72)
    struct.pack_into("<IIIII", attributes, 0, kind, key_size, value_size, max_entries, flags)
    short = "".join(c if c.isalnum() or c in "_." else "_" for c in name)[:NAME_BYTES]
    struct.pack_into("16s", attributes, 28, short.encode())
    done = bpf(_MAP_CREATE, attributes)
    if done < 0:
        needs = " (ring buffers need Linux 5.8)" if kind == MAP_RINGBUF else ""
        raise failure(-done, f"BPF map {name} of {max_entries} entries{needs}")
    return done


def _element(
    command: int,
    fd: int,
    key: bytes,
    value: ctypes.Array[ctypes.c_char] | None = None,
    flags: int = 0,
) -> int:
    held = ctypes.create_string_buffer(key, len(key))
    attributes = bytearray(32)
    at = 0 if value is None else address(value)
    struct.pack_into("<IIQQQ", attributes, 0, fd, 0, address(held), at, flags)
    return bpf(command, attributes)


def lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value of a key; None where the map has no such key."""
    value = ctypes.create_string_buffer(value_size)
    done = _element(_LOOKUP, fd, key, value)
    if done == -errno.ENOENT:
        return None
    if done < 0:
        raise failure(-done, "reading a BPF map")
    return value.raw


def update(fd: int, key: bytes, value: bytes, flags: int = 0) -> None:
    """Set the value of a key."""
    done = _element(_UPDATE, fd, key, ctypes.create_string_buffer(value, len(value)), flags)
    if done < 0:
        raise failure(-done, "writing a BPF map")


def delete(fd: int, key: bytes) -> bool:
    """Take a key out; whether it was there."""
    done = _element(_DELETE, fd, key)
    if done < 0 and done != -errno.ENOENT:
        raise failure(-done, "taking a key out of a BPF map")
    return done >= 0


def next_key(fd: int, key: bytes | None, key_size: int) -> bytes | None:
    """The key that follows one, or the first; None at the end."""
    after = ctypes.create_string_buffer(key_size)
    held = ctypes.create_string_buffer(key or b"", key_size)
    attributes = bytearray(32)
    start = 0 if key is None else address(held)
    struct.pack_into("<IIQQQ", attributes, 0, fd, 0, start, address(after), 0)
    done = bpf(_NEXT_KEY, attributes)
    if done == -errno.ENOENT:
        return None
    if done < 0:
        raise failure(-done, "reading the keys of a BPF map")
    return after.raw


def lookup_batch(
    fd: int, key_size: int, value_size: int, count: int
) -> Iterator[tuple[bytes, bytes]]:
    """All entries of a map, many with each call.

    Args:
        fd: The map.
        key_size: Of a key.
        value_size: Of a value, all processors' together.
        count: Entries to ask for at once.

    Yields:
        Keys and values, each a block of equally long items.
    """
    places = [ctypes.create_string_buffer(max(key_size, 4)) for _ in range(2)]
    before = 0
    while True:
        keys = ctypes.create_string_buffer(key_size * count)
        values = ctypes.create_string_buffer(value_size * count)
        attributes = bytearray(56)
        struct.pack_into(
            "<QQQQIIQQ", attributes, 0, before, address(places[1]), address(keys),
            address(values), count, fd, 0, 0,
        )  # fmt: skip
        done = bpf(_LOOKUP_BATCH, attributes)
        if done == -errno.ENOSPC and count < BATCH_ENTRIES:
            count *= 2  # one bucket of the map holds more than was asked for
            continue
        if done < 0 and done != -errno.ENOENT:
            raise failure(-done, "reading a BPF map")
        (found,) = struct.unpack_from("<I", attributes, 32)
        yield keys.raw[: found * key_size], values.raw[: found * value_size]
        if done < 0:
            return
        places.reverse()
        before = address(places[0])


def freeze(fd: int) -> None:
    """Let nobody write a map any more; the verifier then takes its content for constants."""
    attributes = bytearray(4)
    struct.pack_into("<I", attributes, 0, fd)
    done = bpf(_FREEZE, attributes)
    if done < 0:
        raise failure(-done, "freezing a BPF map")


def load_program(name: str, kind: int, code: bytes, license_: str, *, attach: int = 0) -> int:
    """Give a program to the kernel.

    Args:
        name: What it is called.
        kind: Its type.
        code: Its instructions.
        license_: What it is licensed under.
        attach: Where it will be attached, for kinds that have several such places.

    Returns:
        Its descriptor.

    Raises:
        PrivilegeError: This user may not load it.
        KcapError: The verifier refused it; the error has the end of what it said.
    """
    done = _load(name, (kind, attach), code, license_, None)
    if done >= 0:
        return done
    log = ctypes.create_string_buffer(LOG_BYTES)
    again = _load(name, (kind, attach), code, license_, log)
    if again >= 0:
        return again
    said = log.value.decode("utf-8", "replace").strip().splitlines()[-LOG_LINES:]
    text = "".join(f"\n    {line}" for line in said)
    raise failure(-done, f"BPF program {name} was refused", log=text)


def _load(
    name: str,
    kind: tuple[int, int],
    code: bytes,
    license_: str,
    log: ctypes.Array[ctypes.c_char] | None,
) -> int:
    held = ctypes.create_string_buffer(code, len(code))
    terms = ctypes.create_string_buffer(license_.encode("ascii"))
    attributes = bytearray(72)
    logging = (0, 0, 0) if log is None else (1, len(log), address(log))
    struct.pack_into(
        "<IIQQIIQII16sII", attributes, 0, kind[0], len(code) // 8, address(held), address(terms),
        *logging, 0, 0, name.encode("ascii", "replace")[:NAME_BYTES], 0, kind[1],
    )  # fmt: skip
    return bpf(_PROG_LOAD, attributes)


def open_raw_tracepoint(name: str, program: int) -> int:
    """Run a program at each hit of a tracepoint, until the descriptor is closed.

    Returns:
        The descriptor of the attachment.

    Raises:
        PrivilegeError: This user may not.
        KcapError: The kernel has no such tracepoint, or it passes fewer arguments.
    """
    text = ctypes.create_string_buffer(name.encode("ascii"))
    attributes = bytearray(16)
    struct.pack_into("<QI", attributes, 0, address(text), program)
    done = bpf(_RAW_TRACEPOINT_OPEN, attributes)
    if done == -errno.ENOENT:
        raise KcapError(f"this kernel has no tracepoint {name}")
    if done < 0:
        raise failure(-done, f"attaching to the tracepoint {name}")
    return done


def open_perf_event(attributes: bytes, *, pid: int = -1, cpu: int = 0) -> int:
    """perf_event_open(2).

    Args:
        attributes: A ``struct perf_event_attr``.
        pid: The process to watch; -1 for all.
        cpu: The processor to watch; -1 for all.

    Returns:
        The descriptor.

    Raises:
        PrivilegeError: This user may not.
        KcapError: The kernel refused.
    """
    block = ctypes.create_string_buffer(attributes, len(attributes))
    done = syscall(
        PERF_EVENT_OPEN,
        block,
        ctypes.c_int(pid),
        ctypes.c_int(cpu),
        ctypes.c_int(-1),
        ctypes.c_ulong(_PERF_CLOEXEC),
    )
    if done < 0:
        raise failure(ctypes.get_errno(), "perf_event_open", needs="CAP_PERFMON or CAP_SYS_ADMIN")
    return done


def attach_tracepoint(tracepoint: int, program: int) -> int:
    """Run a program at each hit of a tracepoint that tracefs numbers.

    Returns:
        The descriptor of the attachment.

    Raises:
        PrivilegeError: This user may not.
        KcapError: The kernel refused.
    """
    attributes = bytearray(128)
    struct.pack_into("<IIQQ", attributes, 0, 2, len(attributes), tracepoint, 1)
    fd = open_perf_event(bytes(attributes))
    for request, argument in ((_SET_BPF, program), (_ENABLE, 0)):
        if libc().ioctl(fd, ctypes.c_ulong(request), ctypes.c_ulong(argument)) < 0:
            failed = ctypes.get_errno()
            os.close(fd)
            raise failure(failed, f"attaching to the tracepoint with number {tracepoint}")
    return fd


def run_program(fd: int, arguments: bytes) -> int:
    """Run a program on a raw tracepoint once, now (Linux 5.10).

    Args:
        fd: The program.
        arguments: What the tracepoint would give it: integers of 64 bits.

    Returns:
        What it returned.

    Raises:
        PrivilegeError: This user may not.
        KcapError: The kernel refused.
    """
    context = ctypes.create_string_buffer(arguments, len(arguments))
    attributes = bytearray(80)
    struct.pack_into("<I", attributes, 0, fd)
    struct.pack_into("<IIQ", attributes, 40, len(arguments), 0, address(context))
    done = bpf(_RUN, attributes)
    if done < 0:
        raise failure(-done, "running a BPF program")
    return int(struct.unpack_from("<I", attributes, 4)[0])


def program_info(fd: int) -> ProgramInfo:
    """What the kernel says about a program.

    Raises:
        KcapError: It is no program.
    """
    maps = ctypes.create_string_buffer(4 * 64)
    info = ctypes.create_string_buffer(232)
    struct.pack_into("<IQ", info, 52, 64, address(maps))
    attributes = bytearray(16)
    struct.pack_into("<IIQ", attributes, 0, fd, len(info), address(info))
    done = bpf(_INFO, attributes)
    if done < 0:
        raise failure(-done, "asking for a BPF program")
    kind, number, tag, _, instructions, _, _, load_time_ns, uid, map_count = struct.unpack_from(
        "<II8sIIQQQII", info
    )
    run_time_ns, run_count, misses = struct.unpack_from("<QQQ", info, 192)
    return ProgramInfo(
        number,
        kind,
        tag.hex(),
        info.raw[64:80].split(b"\0")[0].decode("utf-8", "replace"),
        load_time_ns,
        uid,
        instructions,
        struct.unpack_from(f"<{min(map_count, 64)}I", maps),
        run_time_ns,
        run_count,
        misses,
    )


def program_ids() -> Iterator[int]:
    """The numbers of all programs that the kernel holds.

    Raises:
        PrivilegeError: This user may not ask; CAP_SYS_ADMIN is needed.
    """
    number = 0
    while True:
        attributes = bytearray(12)
        struct.pack_into("<I", attributes, 0, number)
        done = bpf(_PROG_NEXT_ID, attributes)
        if done == -errno.ENOENT:
            return
        if done < 0:
            raise failure(-done, "listing the BPF programs")
        (number,) = struct.unpack_from("<I", attributes, 4)
        yield number


def program_fd(number: int) -> int | None:
    """A descriptor of a program by its number; None where it is gone.

    Raises:
        PrivilegeError: This user may not ask.
    """
    attributes = bytearray(12)
    struct.pack_into("<I", attributes, 0, number)
    done = bpf(_PROG_BY_ID, attributes)
    if done == -errno.ENOENT:
        return None
    if done < 0:
        raise failure(-done, f"asking for the BPF program {number}")
    return done


def possible_cpus() -> int:
    """Processors that the kernel keeps values for, those not plugged in included.

    Raises:
        KcapError: The kernel does not say.
    """
    path = "/sys/devices/system/cpu/possible"
    try:
        text = Path(path).read_text("ascii").strip()
        ranges = [part.partition("-") for part in text.split(",")]
        return max(int(last or first) for first, _, last in ranges) + 1
    except (OSError, ValueError) as error:
        raise KcapError("the number of processors cannot be read", file=path) from error
