"""Moments at which something has to be looked at, as the kernel's program tells them.

They are few and far between, so each is an object of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.errors import KcapError
from kcap.model.tracee_names import user_device
from kcap.readers.live.bpf import paths
from kcap.readers.live.bpf.btf import Btf
from kcap.readers.live.bpf.offsets import NOWHERE
from kcap.readers.live.bpf.records import Block, layout

EXEC, MEMORY, MODULE_FILE, MODULE_IMAGE, PROGRAM, MOUNT = range(1, 7)
"""``enum kcap_trigger_kind``: a file was executed, memory became code, a module came from a file
or from memory, a BPF program was loaded, file systems may have been mounted."""

UNWATCHED, UNLINKED, WAS_CODE, WAS_WRITABLE, FORMER_UNKNOWN, MAPPED = (1 << n for n in range(6))
"""``enum kcap_trigger_flag``: an executed file is on a device that nobody marked; a file has no
name; memory could be written and executed before, could be written before, nobody saw what it was
before, or it is a file without a name that was mapped as code."""

_STRUCT: Final = "kcap_trigger"
_PATH_BYTES: Final = 4096


class Trigger(NamedTuple):
    """One moment."""

    kind: int
    flags: int
    ts_ns: int
    """CLOCK_BOOTTIME. Content that was copied in the kernel has it too: `streams.Finished`."""
    pid: int
    tid: int
    start_ns: int
    """CLOCK_BOOTTIME: when the process was started."""
    thread_start_ns: int
    cgroup_id: int
    mount_ns: int
    process_name: str
    nr: int | None
    """The system call, by its number in `programs.NAMES`; None outside of one."""
    retval: int
    dev: int
    """``st_dev`` of the file; 0 for none."""
    inode: int
    changed_ns: int
    size: int
    """Bytes of the file."""
    mode: int
    path: bytes | None
    """The path of the file as the process has it; ``memfd:NAME`` for one that hangs on nothing."""
    address: int
    length: int
    """Of memory, or of content that follows; bytes."""
    fd: int | None
    protection: int
    """Of memory: PROT_ bits; of a BPF program its type."""
    former: int
    """Of memory: PROT_ bits before; of a BPF program its number."""
    name: str
    """Of a BPF program."""

    @property
    def unwatched(self) -> bool:
        """Whether an executed file can only be had from the process that runs it."""
        return bool(self.flags & (UNWATCHED | UNLINKED))


class Decoder:
    """Makes triggers of records.

    Args:
        types: The structures of the programs' object.

    Raises:
        KcapError: They are not what this version of kcap reads.
    """

    def __init__(self, types: Btf) -> None:
        self._layout = layout(types, _STRUCT)
        if "path" not in (self._layout.names or ()):
            raise KcapError(f"{_STRUCT} of the kernel program is not as it should be")
        self.damaged = 0
        """Records that were none, so far."""

    def decode(self, block: Block) -> Iterator[Trigger]:
        """Read records.

        Args:
            block: What the ring gave.

        Yields:
            Each trigger, in the order of the ring.
        """
        data = np.frombuffer(block.data, np.uint8)
        size = self._layout.itemsize
        for at in map(int, block.offsets):
            if at < 0 or at + size > len(data):
                self.damaged += 1
                continue
            head = data[at : at + size].view(self._layout)[0]
            path_bytes = int(head["path"])
            end = at + size + path_bytes
            if end > len(data) or path_bytes > _PATH_BYTES:
                self.damaged += 1
                continue
            yield _trigger(head, data[at + size : end].tobytes())


def text(raw: npt.NDArray[np.int8] | bytes) -> str:
    """A name of fixed size, up to its NUL, as text.

    Args:
        raw: Its bytes.

    Returns:
        The text; bytes that are no UTF-8 are escaped.
    """
    found = bytes(raw).split(b"\0", 1)[0]
    return found.decode("utf-8", "backslashreplace")


def _trigger(head: np.void, path: bytes) -> Trigger:
    number = {name: int(head[name]) for name in (head.dtype.names or ()) if not head[name].shape}
    return Trigger(
        kind=number["kind"],
        flags=number["flags"],
        ts_ns=number["ts_ns"],
        pid=number["pid"],
        tid=number["tid"],
        start_ns=number["start_ns"],
        thread_start_ns=number["thread_start_ns"],
        cgroup_id=number["cgroup_id"],
        mount_ns=number["mount_ns"],
        process_name=text(head["comm"].tobytes()),
        nr=None if number["nr"] == NOWHERE else number["nr"],
        retval=number["retval"],
        dev=user_device(number["dev"]),
        inode=number["inode"],
        changed_ns=number["changed_ns"],
        size=number["size"],
        mode=number["mode"],
        path=paths.from_components(path),
        address=number["address"],
        length=number["length"],
        fd=None if number["fd"] == NOWHERE else number["fd"],
        protection=number["protection"],
        former=number["former"],
        name=text(head["name"].tobytes()),
    )
