"""A file system whose server stops answering when it is told to: FUSE, spoken by hand.

``fuse_support.py FOLDER`` mounts itself there and serves one file, ``program``, which has the
content of /bin/true. It says ``ready``, and after SIGUSR1 it takes requests and answers none.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

DEVICE: Final = "/dev/fuse"
NAME: Final = b"program"

_IN: Final = struct.Struct("<IIQQIIII")
_OUT: Final = struct.Struct("<IiQ")
_ATTR: Final = struct.Struct("<6Q10I")
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHHI7I")
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _STATFS, _RELEASE = 1, 2, 3, 14, 15, 17, 18
_FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR, _ACCESS, _INTERRUPT = 25, 26, 27, 28, 29, 34, 36
_BATCH_FORGET: Final = 42
_SILENT: Final = {_FORGET, _BATCH_FORGET, _INTERRUPT}
_DIRECT_IO: Final = 0
_VALID_S: Final = 3600
_ROOT, _FILE = 1, 2
_REQUEST_BYTES: Final = 1 << 20
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class _Server:
    """Answers the kernel."""

    def __init__(self, device: int, content: bytes) -> None:
        self._device = device
        self._content = content
        self.answers = True

    def work(self) -> None:
        """Until it is unmounted, or killed."""
        while True:
            try:
                request = os.read(self._device, _REQUEST_BYTES)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                raise
            _, op, unique, node, *_ = _IN.unpack_from(request)
            if not self.answers or op in _SILENT:
                continue
            answer = self._answer(op, node, request[_IN.size :])
            status, body = (0, answer) if isinstance(answer, bytes) else (-answer, b"")
            os.write(self._device, _OUT.pack(_OUT.size + len(body), status, unique) + body)

    def _answer(self, op: int, node: int, body: bytes) -> bytes | int:
        match op:
            case 26:
                major, minor, ahead, _ = struct.unpack_from("<4I", body)
                assert major == 7
                return _INIT_OUT.pack(7, min(minor, 31), ahead, 0, 8, 6, 4096, 1, 1, 0, 0, *[0] * 7)
            case 1:
                return self._entry() if body.rstrip(b"\0") == NAME else errno.ENOENT
            case 3:
                return struct.pack("<QII", _VALID_S, 0, 0) + self._attributes(node)
            case 14 | 27:
                return struct.pack("<QII", 1, _DIRECT_IO, 0)
            case 15:
                offset, size = struct.unpack_from("<8xQI", body)
                return self._content[offset : offset + size]
            case 28:
                return b""
            case 17:
                return struct.pack("<5Q4I24x", 0, 0, 0, 2, 0, 4096, 255, 4096, 0)
            case 18 | 29 | 34:
                return b""
            # 25, to flush, is not known here: then whoever closes a file is not held back.
            case _:
                return errno.ENOSYS

    def _entry(self) -> bytes:
        return struct.pack("<QQQQII", _FILE, 0, _VALID_S, _VALID_S, 0, 0) + self._attributes(_FILE)

    def _attributes(self, node: int) -> bytes:
        mode = 0o040755 if node == _ROOT else 0o100755
        size = 0 if node == _ROOT else len(self._content)
        return _ATTR.pack(node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _serve(folder: str) -> None:
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if _LIBC.mount(b"test", folder.encode(), b"fuse.test", 0, options) < 0:
        raise OSError(ctypes.get_errno(), "mount")
    server = _Server(device, Path("/bin/true").read_bytes())

    def stop(*_: object) -> None:
        server.answers = False

    signal.signal(signal.SIGUSR1, stop)
    print("ready", flush=True)
    server.work()


class Mounted:
    """A mounted one.

    Args:
        folder: Where.
        process: Its server.
    """

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.program = folder / NAME.decode()
        self._process = process

    def stop_answering(self) -> None:
        """From here on whoever asks waits."""
        self._process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """End the server: its device is closed, and all who wait get an error."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Mounted]:
    """Mount one; at the end all who wait for it go on.

    Args:
        folder: Where; it is made.

    Yields:
        It; the test skips where this host has no FUSE, or this user may not mount.
    """
    if not Path(DEVICE).exists() or os.geteuid() != 0:
        pytest.skip(f"no {DEVICE}, or not root")
    folder.mkdir()
    process = subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            pytest.skip("this host does not let us mount FUSE")
        yield Mounted(folder, process)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        subprocess.run(["umount", "-l", str(folder)], check=False, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    _serve(sys.argv[1])
