"""What a sink would be given, hashed instead of sent: for a manifest, and to verify one."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from kcap.model.batch import Batch
from kcap.replay.manifest import Digested
from kcap.writers.sinks import local, render, spec

if TYPE_CHECKING:
    from kcap.model.stream import Sink
    from kcap.writers.sinks.messages import Texts


class Dry:
    """A sink that does all that another one does, but for sending.

    Args:
        of: That sink.

    Raises:
        KcapError: Its settings are wrong.
    """

    def __init__(self, of: spec.Spec) -> None:
        self._of = of
        self._messages = hashlib.sha256()
        self._count = 0
        self._beside: dict[str, _Column] = {}
        self._renderer: render.Renderer | None = None
        self._writer: Sink | None = None
        template = spec.template(of)
        if of.transport is not None:
            _, varying = spec.values(of)
            self._renderer = render.Renderer(
                of.form, template=template, what=of.what, values=varying
            )
        elif of.scheme != "null":
            self._stream = Digested(cast("BinaryIO", io.BufferedWriter(_Nowhere())))
            fields = getattr(of.delivery, "fields", ())
            self._writer = local.writer(of.form, cast("BinaryIO", self._stream), template, fields)

    def described(self) -> dict[str, Any]:
        """What it would have been given.

        Returns:
            Where, in which format, how much, its SHA-256, and that of what goes with messages:
            their ids, their topics; plain JSON.
        """
        said: dict[str, Any] = {
            "format": self._of.form,
            "name": self._of.shown.partition("?")[0],
            "what": self._of.what,
        }
        if self._renderer is not None:
            said |= {"messages": self._count, "sha256": self._messages.hexdigest()}
            beside = {name.replace("_", "-"): each.sha256 for name, each in self._beside.items()}
            return said | {"beside": beside}
        if self._writer is not None:
            return said | {"bytes": self._stream.size, "sha256": self._stream.sha256}
        return said

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        if self._renderer is not None:
            for made in self._renderer.render(batch):
                self._messages.update(made.bodies)
                for name, texts in made.beside.items():
                    self._beside.setdefault(name, _Column()).add(texts)
                self._count += made.count
        elif self._writer is not None:
            self._writer.write(render.chosen(batch, self._of.what))

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`."""
        if self._writer is not None:
            self._writer.close()


class _Column:
    """Hashes texts, however they come in blocks."""

    def __init__(self) -> None:
        self._hashes = hashlib.sha256(), hashlib.sha256()

    def add(self, texts: Texts) -> None:
        for hashed, part in zip(self._hashes, texts, strict=True):
            hashed.update(part)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(b"".join(hashed.digest() for hashed in self._hashes)).hexdigest()


class _Nowhere(io.RawIOBase):
    """Takes everything, keeps nothing."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401  (a buffer, as io declares it)
        return memoryview(data).nbytes
