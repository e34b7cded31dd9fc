"""``--artifacts dir:DIR``: what was recorded, laid out in a folder as Tracee does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from kcap.errors import OutputError
from kcap.model.tracee_names import OUT, PCAP
from kcap.tools import common, logs

if TYPE_CHECKING:
    from kcap.format.blobs import Extent, Manifest
    from kcap.format.reader import CaptureReader
    from kcap.model.side import Loss
    from kcap.model.stream import Sink
    from kcap.tools.artifact_options import Asked

_FOLDER: Final = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)


class _Joined:
    """The artifacts of the files of a recording, as if they were one.

    Args:
        readers: The files, in order.
    """

    def __init__(self, readers: Sequence[CaptureReader]) -> None:
        self._readers = readers
        self._current = readers[0]

    @property
    def blobs(self) -> _Joined:
        """As `CaptureReader.blobs`: of the file whose artifact was given last."""
        return self

    @property
    def losses(self) -> list[Loss]:
        """As `BlobReader.losses`."""
        return [loss for reader in self._readers for loss in reader.blobs.losses]

    def manifests(self) -> Iterator[Manifest]:
        """As `CaptureReader.manifests`."""
        for reader in self._readers:
            self._current = reader
            yield from reader.manifests()

    def block(self, extent: Extent) -> bytes:
        """As `BlobReader.block`."""
        return self._current.blobs.block(extent)


def prepare(asked: Asked | None) -> None:
    """Make the folder, or clear it: before anything is recorded.

    Args:
        asked: What is asked for, None for no artifacts.

    Raises:
        OutputError: It can't be written, or must not be cleared.
    """
    if asked is None or asked.folder is None:
        return
    from kcap.writers.artifacts import clear_output
    from kcap.writers.artifacts_folder import SafeFolder

    if asked.clear and clear_output(asked.folder):
        logs.tell(f"kcap: cleared: {_shown(asked.folder)}/out")
    SafeFolder(asked.folder, force=True).close()
    packets = Path(asked.folder, OUT, PCAP)
    if asked.wanted.network is not None and (packets.is_symlink() or packets.exists()):
        raise OutputError(
            "it exists already", file=str(packets), hint="--artifacts clear-dir removes it"
        )


def lay_out(asked: Asked | None, files: Sequence[str]) -> int:
    """Write what was recorded into the folder.

    Args:
        asked: What was asked for, None for no artifacts.
        files: The files of the recording; closed.

    Returns:
        The exit code: 3 where something is not there.

    Raises:
        KcapError: The folder can't be written, or a file not be read.
    """
    if asked is None or asked.folder is None or not files:
        return 0
    from kcap.format.reader import CaptureReader
    from kcap.writers.artifacts import extract

    with contextlib.ExitStack() as stack:
        readers = []
        for name in files:
            stream = stack.enter_context(open(name, "rb"))  # noqa: PTH123
            readers.append(CaptureReader(stream, name))
            stack.callback(readers[-1].close)
        joined = cast("CaptureReader", _Joined(readers))
        report = extract(joined, asked.folder, layout="tracee", incomplete=True, force=True)
        written = []
        if report.artifacts or asked.wanted.kernel or asked.wanted.files:
            files_of_them = common.counted(report.files, "file")
            written.append(f"{common.counted(report.artifacts, 'artifact')} in {files_of_them}")
        if asked.wanted.network is not None:
            sightings, losses = _packets(readers, asked.folder, asked.wanted.network.split)
            report.losses += losses
            written.append(f"{common.counted(sightings, 'sighting')} of packets")
    logs.tell(f"kcap: {', '.join(written)}: {_shown(asked.folder)}/out")
    common.report_losses(report.losses, asked.folder)
    return 3 if report.losses else 0


def _packets(
    readers: Sequence[CaptureReader], folder: str, split: Collection[str]
) -> tuple[int, list[Loss]]:
    """Write the packets; how often one was seen, and what could not be written of them."""
    from kcap.replay.pipeline import Pipeline
    from kcap.tools.folder import Folder
    from kcap.writers.pcap_split import PacketFolder

    with contextlib.ExitStack() as stack:
        below = os.open(folder, _FOLDER)
        stack.callback(os.close, below)
        for name in (OUT, PCAP):
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=below)
                below = os.open(name, _FOLDER, dir_fd=below)
            except OSError as e:
                raise OutputError(f"can't be written: {e.strerror}", file=folder) from e
            stack.callback(os.close, below)
        # Whatever stands under its name by now: it is this folder.
        held = Folder(Path(f"/proc/self/fd/{below}"))
        sink = PacketFolder(
            lambda name: held.create(_as_tracee(name)),
            lambda name: held.append(_as_tracee(name)),
            split,
            "pcapng",
        )
        stack.callback(sink.close)
        for reader in readers:
            Pipeline(reader, [_Open(sink)]).run()
    return sink.packets, sink.losses


class _Open:
    """A sink of which another capture follows.

    Args:
        sink: Gets the events, and is not closed.
    """

    def __init__(self, sink: Sink) -> None:
        self.write = sink.write

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`."""


def _as_tracee(name: str) -> str:
    """Tracee's files are pcapng, and are called ``.pcap``; the folder is open already."""
    name = name.removeprefix(f"{PCAP}/")
    return f"{name.removesuffix('.pcapng')}.pcap" if name.endswith(".pcapng") else name


def _shown(folder: str) -> str:
    from kcap.model.text import printable

    return printable(folder.rstrip("/") or "/")
