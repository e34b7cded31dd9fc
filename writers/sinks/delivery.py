"""The pipeline's end of a sink over a network: it renders, its courier delivers."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import tempfile
import threading
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kcap.errors import OutputError
from kcap.guard.child import Child
from kcap.model.batch import Batch
from kcap.model.side import Loss
from kcap.writers.sinks import messages, spec, spool
from kcap.writers.sinks.render import Renderer

if TYPE_CHECKING:
    from kcap.guard.rights import User

TARGET: Final = "kcap.writers.sinks.courier"
"""What runs in the other process."""

_ADDRESS_BYTES: Final = 1 << 30
"""Address space for a courier beyond what may wait in it: libraries and stacks of threads."""

_LINE_BYTES: Final = 1 << 20


class Delivery:
    """A sink that sends events to a server, each at least once, in their order.

    What the server has no time for waits in the courier; where no more may wait there, `write`
    does: nothing is dropped.

    Args:
        of: The sink as it was asked for.
        options: Its options.
        give_up_s: Seconds without success that end the run; None for never.
        user: Who the courier becomes; None to stay who this is.

    Raises:
        KcapError: Settings are wrong, or a file can't be opened.
    """

    def __init__(
        self,
        of: spec.Spec,
        options: spec.DeliveryOptions,
        *,
        give_up_s: float | None,
        user: User | None = None,
    ) -> None:
        self.name = of.shown
        """Where it sends to, without secrets."""
        self._digest = hashlib.sha256()
        self.losses: list[Loss] = []
        """What the server refused."""
        self.sent = 0
        """Messages that the courier was given."""
        settings = asdict(of.options)
        constants, varying = spec.values(of)
        self._renderer = Renderer(of.form, template=spec.template(of), what=of.what, values=varying)
        self._spool, self._is_ours = _spool_path(options.spool, of)
        given = {
            "scheme": of.scheme,
            "options": settings,
            "constants": constants,
            "sink": of.key,
            "spool": self._spool,
            "spool_bytes": options.spool_bytes,
            "memory_bytes": options.memory_bytes,
            "dead_letters": options.dead_letters,
            "batch": options.batch,
            "give_up_s": give_up_s,
        }
        try:
            self._child = Child(
                TARGET,
                given,
                network=True,
                memory_bytes=_ADDRESS_BYTES + 4 * options.memory_bytes,
                user=user,
            )
        except BaseException:
            self._tidy()
            raise
        if self._is_ours:
            # Who closes a recorder's sinks may have no right to remove it.
            atexit.register(self._tidy)
        self._reports: threading.Thread | None = None
        self._said: dict[str, Any] = {}
        self._over = False
        self._ended = 0

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over all bodies, a newline behind each."""
        return self._digest.hexdigest()

    @property
    def confirmed(self) -> int:
        """How many messages of this run the server has."""
        return int(self._said.get("taken", 0))

    @property
    def status(self) -> dict[str, Any]:
        """What the courier said last: `kcap.writers.sinks.courier.Courier.status`."""
        return dict(self._said)

    @property
    def pids(self) -> list[int]:
        """The courier's process."""
        return [self._child.pid]

    def write(self, batch: Batch) -> None:
        """Hand the events of a batch to the courier; waits while no more may wait there.

        Args:
            batch: Events; side records are not sent.

        Raises:
            OutputError: The courier ended: the server was silent for too long, or refuses us.
        """
        for made in self._renderer.render(batch):
            self._digest.update(made.bodies)
            self._send(messages.BLOCK, made.block)
            self.sent += made.count

    def close(self) -> None:
        """Wait until the server has everything.

        Raises:
            OutputError: It does not get everything; what it lacks is in the spool.
        """
        if self._over:
            return
        self._send(messages.END, b"")
        try:
            self._finish()
        except KeyboardInterrupt:
            # Then the courier ends, and leaves what waits in the spool.
            self._child.requests.close()
            self._finish()
        if self._said.get("state") != "done":
            raise self._failure()
        self._tidy()

    def abandon(self) -> None:
        """End the courier; what it has goes to the spool. Does nothing after `close`.

        Also what is left to do for a process that made the sink, and had another one write to it.
        """
        if not self._over:
            self._over = True
            self._child.close()
            self._tidy()

    def _send(self, kind: bytes, payload: bytes) -> None:
        if self._over:
            raise self._failure()
        if self._reports is None:
            self._reports = threading.Thread(target=self._listen, daemon=True)
            self._reports.start()
        pipe = self._child.requests
        try:
            pipe.write(messages.frame(kind, payload))
            pipe.flush()
        except OSError as e:
            self._finish()
            raise self._failure() from e

    def _listen(self) -> None:
        """The thread that takes in what the courier says."""
        with contextlib.suppress(OSError, ValueError):  # the pipe ends: so does this
            while line := self._child.replies.readline(_LINE_BYTES):
                self._said = json.loads(line)

    def _finish(self) -> None:
        """The courier ends: take in its last words."""
        assert self._reports is not None
        self._reports.join()
        self._over = True
        self._ended = self._child.close()
        refused = Counter(self._said.get("refused", {}))
        for reason, count in sorted(refused.items()):
            self.losses.append(Loss("skipped", count, f"{self.name} refused it: {reason}"))
        if self._said.get("cut"):
            why = f"{self._spool}: a record that was not complete was left out"
            self.losses.append(Loss("torn", None, why))

    def _failure(self) -> OutputError:
        """What to say of a courier that did not deliver everything."""
        said = self._said
        if said.get("state") in (None, "running", "done"):
            how = f"signal {-self._ended}" if self._ended < 0 else f"exit code {self._ended}"
            why = f"the process that sends was ended ({how})"
        else:
            why = said["error"]
        missing = self.sent - self.confirmed - sum(said.get("refused", {}).values())
        kept = self._kept()
        hint = None
        if kept:
            hint = f"what waited is in {kept}: spool={kept} sends it first the next time"
        return OutputError(
            f"{missing:,} of {self.sent:,} messages were not delivered: {why}",
            file=self.name,
            hint=hint,
        )

    def _kept(self) -> str | None:
        """The spool file, where it has messages."""
        try:
            return self._spool if Path(self._spool).stat().st_size > spool.EMPTY_BYTES else None
        except OSError:
            return None

    def _tidy(self) -> None:
        """Remove a spool file that nobody named and that holds nothing."""
        if self._is_ours and self._kept() is None:
            with contextlib.suppress(OSError):  # a process without rights leaves it to its parent
                Path(self._spool).unlink()


def _spool_path(named: str | None, of: spec.Spec) -> tuple[str, bool]:
    """Where the spool is, and whether it is one that nobody named."""
    if named is None:
        fd, path = tempfile.mkstemp(prefix="kcap-", suffix=".spool")
        os.close(fd)
        return path, True
    place = Path(named).absolute()  # links stay what they are, and are refused
    if not place.is_dir():
        return str(place), False
    name = hashlib.sha256(of.key.encode()).hexdigest()[:16]
    return str(place / f"{name}.spool"), False
