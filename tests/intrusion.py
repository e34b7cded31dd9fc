"""Makes fixtures/intrusion.kcap: the intrusion, recorded, and nothing else of the host it ran on.

    unshare --uts sh -c 'hostname example; python tests/intrusion.py NEW.kcap'

As root, where `kcap record` works. It happens in ``/tmp/intrusion``, and is recorded on a host that
is called ``example`` for it. In the capture are the events of its processes; what a recording says
of its host beside them (users, mounts, other processes, the kernel's options) is left out.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).resolve().parent

if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from live_support import recording  # noqa: E402
from workload_support import SCENARIO  # noqa: E402

from kcap.format.blobs import Manifest  # noqa: E402
from kcap.format.reader import CaptureReader  # noqa: E402
from kcap.format.writer import CaptureWriter  # noqa: E402
from kcap.model.batch import Batch  # noqa: E402
from kcap.model.side import Heartbeat, Loss, Side, SourceInfo  # noqa: E402

FOLDER: Final = Path("/tmp/intrusion")
HOST: Final = "example"
KEPT: Final = ("events", "kcap", "kernel", "machine", "system", "unavailable")
"""What is told of the host: its kernel, and what can be known of it there."""

WAITS: Final = ("sh", "-c", 'read -r go; exec "$@"', "sh")
"""A program that runs once it is being recorded."""


def events(*options: str) -> str:
    """What `kcap detect --list-events` prints.

    Args:
        options: More words for it.

    Returns:
        The names, comma-joined.
    """
    command = [sys.executable, "-m", "kcap.tools", "detect", *options, "--list-events"]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def built(folder: Path) -> Path:
    """The program, small enough to be an artifact: with musl (MIT), of Debian's musl-tools.

    Args:
        folder: Where it goes.

    Returns:
        Its path.
    """
    path = folder / "intrusion"
    headers = ("-idirafter", "/usr/include", "-idirafter", "/usr/include/x86_64-linux-gnu")
    source = SCENARIO / "intrusion.c"
    options = ("-O1", "-s", "-static", "-pthread", *headers, "-o", path)
    subprocess.run(["musl-gcc", *options, source], check=True)
    return path


def recorded(path: Path) -> None:
    """Record the intrusion, and whatever the recorder says of this host.

    Args:
        path: The new capture.
    """
    FOLDER.mkdir()
    try:
        program = built(FOLDER)
        waiting = subprocess.Popen(
            [*WAITS, program, str(FOLDER)], stdin=subprocess.PIPE, cwd=FOLDER
        )
        scope = ("--scope", f"tree={waiting.pid}")
        artifacts = ("--artifacts", f"exec,write={FOLDER}/*,mem,module")
        # What others execute before files are watched is counted, too.
        words = ("--source", "bpf", "--events", events(), *artifacts, *scope)
        with recording(path, *words, codes=(0, 3)):
            # What listens to artifacts is attached before what listens to system calls.
            time.sleep(3)
            waiting.communicate(b"go\n", timeout=60)
        assert waiting.returncode == 0
    finally:
        subprocess.run(["rm", "-r", "--one-file-system", str(FOLDER)], check=True)


def cleaned(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Leave out what a recording says of its host.

    Args:
        batches: A capture's.

    Yields:
        The same events, and what was lost.
    """
    for batch in batches:
        sides: list[Side] = []
        for side in batch.before:
            if isinstance(side, SourceInfo):
                kernel = {name: side.details[name] for name in KEPT if name in side.details}
                sides.append(replace(side, details=kernel))
            elif isinstance(side, Heartbeat) or (isinstance(side, Loss) and side.kind != "blind"):
                sides.append(side)
        yield batch.with_before(sides)


def is_its_own(manifest: Manifest) -> bool:
    """Whether an artifact is the intrusion's: no program of the system's, and all of it is there.

    Args:
        manifest: The artifact.

    Returns:
        True where it is.
    """
    path = manifest.path or ""
    own = path.startswith((f"{FOLDER}/", "/memfd:")) or not path.startswith(("/usr/", "/lib"))
    return own and manifest.complete and not manifest.holes and manifest.size < 1 << 17


def main(target: Path) -> None:
    """Record, clean, write.

    Args:
        target: The new capture.
    """
    assert socket.gethostname() == HOST
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole.kcap")
        recorded(whole)
        with whole.open("rb") as stream, target.open("xb") as out:
            writer = CaptureWriter(out, file=str(target), level=19, canonical=True)
            reader = CaptureReader(stream, str(whole))
            for batch in cleaned(reader.batches()):
                writer.write(batch)
            for manifest in reader.manifests():
                if is_its_own(manifest):
                    with writer.blobs.begin(
                        path=manifest.path,
                        origin=manifest.origin,
                        ord=manifest.ord,
                        details=manifest.details,
                    ) as blob:
                        for part in reader.blob(manifest):
                            blob.write(part)
            writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
