"""What runs in the machine of another kernel: streams, memory, programs and modules are kept.

``python3 artifacts_guest.py OUT PROGRAMS`` writes, as JSON, what became of them.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from kcap.model.artifact import Gap
from kcap.readers.live.artifacts.kernel import ArtifactKernel
from kcap.readers.live.artifacts.streams import Finished, Streams
from kcap.readers.live.artifacts.triggers import Decoder
from kcap.readers.live.artifacts.wanted import FileFilter, Wanted
from kcap.readers.live.bpf import system

_READ_WRITE, _ALL, _READ_EXECUTE = 3, 7, 5
_PRIVATE_ANONYMOUS = 0x22
_INIT_MODULE, _FINIT_MODULE = 175, 313
_IMAGE = bytes(range(251)) * 1200
_CODE = bytes.fromhex("b700000001000000" * 500 + "9500000000000000")


def _child(does: Callable[[], object]) -> None:
    """Do something in a process of its own, which is not the recorder's."""
    pid = os.fork()
    if not pid:
        try:
            does()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def _turn() -> None:
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for before in (_ALL, _READ_WRITE):
        at = libc.mmap(None, 8192, before, _PRIVATE_ANONYMOUS, -1, 0)
        libc.mprotect(at, 8192, _READ_EXECUTE)


def _modules() -> None:
    libc = ctypes.CDLL(None)
    libc.syscall(_INIT_MODULE, _IMAGE, len(_IMAGE), b"")
    libc.syscall(_FINIT_MODULE, os.open("/bin/busybox", os.O_RDONLY), b"", 0)


def _told(one: Finished) -> dict[str, object]:
    parts = list(one.artifact.content.parts())
    content = b"".join(part for part in parts if not isinstance(part, Gap))
    return {
        "kind": one.artifact.kind,
        "name": one.artifact.details["process_name"],
        "file_type": one.artifact.details.get("file_type"),
        "bytes": len(content),
        "gaps": [[part.length, part.reason] for part in parts if isinstance(part, Gap)],
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def main() -> None:
    """Do it, and write down what was seen."""
    out, programs = Path(sys.argv[1]), Path(sys.argv[2])
    both = FileFilter(types=frozenset({"pipe", "socket"}))
    wanted = Wanted(exec=True, mem=True, module=True, bpf=True, read=both, write=both)
    kernel = ArtifactKernel(wanted)
    streams = Streams(kernel.types, wanted)
    kernel.attach()
    subprocess.run(["sh", "-c", "echo read testing 123 | busybox cat >/dev/null"], check=True)
    subprocess.run([programs / "passing"], check=True)
    _child(_turn)
    _child(_modules)
    _child(lambda: system.load_program("counted", 17, _CODE, "GPL"))
    kernel.detach()
    streams.take(kernel.content.take())
    kernel.content.release()
    streams.settle(kernel.totals())
    said = {
        "refused": kernel.refused,
        "unavailable": kernel.unavailable,
        "streams": [_told(one) for one in streams.rest()],
        "triggers": [
            [
                one.kind,
                one.flags,
                one.process_name,
                one.length,
                one.retval,
                (one.path or b"").decode(),
            ]
            for one in Decoder(kernel.types).decode(kernel.triggers.take())
        ],
        "sums": kernel.sums()._asdict(),
        "image": hashlib.sha256(_IMAGE).hexdigest(),
        "code": hashlib.sha256(_CODE).hexdigest(),
    }
    kernel.close()
    (out / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
