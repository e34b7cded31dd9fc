"""What a protocol has to do to carry events to a server.

A transport lives in the courier, a process of its own without rights. It sends what it is given,
in that order, and returns when the server has said that it has it. It neither retries nor stores:
the courier does, the same way for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, Protocol

from kcap.errors import KcapError


@dataclass(frozen=True, slots=True)
class Message:
    """One event or alert on its way."""

    id: str
    """``ORIGIN:ORD`` of an event, the id of an alert; the same whenever it is sent again."""
    body: bytes
    """What the server gets, as the sink's ``format`` renders it."""
    ts_ns: int | None = None
    """The event's time, ns UTC."""
    values: Mapping[str, str] = field(default_factory=dict)
    """The options of the transport that are templates (`Options.templates`), rendered."""


class Refused(NamedTuple):
    """A message that the server will never take, whatever is done."""

    at: int
    """Its place among those that were sent."""
    reason: str


class InterruptedDeliveryError(KcapError):
    """The server does not answer, or asks to wait: the same messages will do later.

    Attributes:
        taken: How many of the messages, from the first on, are done with for certain.
        refused: Those among them that the server will never take; it has the others.
        wait_s: Seconds that the server asked to wait; None where it did not.
    """

    def __init__(
        self,
        what: str,
        *,
        taken: int = 0,
        refused: Sequence[Refused] = (),
        wait_s: float | None = None,
    ) -> None:
        super().__init__(what)
        self.taken = taken
        self.refused = refused
        self.wait_s = wait_s


def option(
    help: str,  # noqa: A002  (as click calls it)
    *,
    default: Any = None,  # noqa: ANN401
    secret: bool = False,
    template: bool = False,
) -> Any:  # noqa: ANN401
    """A field of `Options` with what is to be known of it.

    Args:
        help: What it does, one line.
        default: Its value where it is not given.
        secret: It is masked wherever settings are shown.
        template: It is a template over the columns of an event (``{{ event }}``), and comes
            rendered in `Message.values`.

    Returns:
        The field.
    """
    metadata = {"help": help, "secret": secret, "template": template}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The settings of a transport: a subclass adds fields made with `option`.

    Fields are of type str, int, float, bool, ``str | None``, ``tuple[str, ...]`` or
    ``dict[str, str]``. Names are written with ``-`` for ``_`` in URLs and settings.
    """

    url: str = option("where the server is", default="")

    @classmethod
    def templates(cls) -> tuple[str, ...]:
        """The names of the fields that are templates."""
        return tuple(f.name for f in fields(cls) if f.metadata["template"])

    @classmethod
    def secrets(cls) -> tuple[str, ...]:
        """The names of the fields that are secret; passwords in ``url`` are, too."""
        return tuple(f.name for f in fields(cls) if f.metadata["secret"])


class Transport(Protocol):
    """A connection to a server; what an entry point of ``kcap.sinks`` names, by URL scheme.

    ``needs`` may be left out: it maps each extra that it takes to the module it installs. Such
    modules are imported in the constructor, not before, and all that they need: it is called while
    files can still be read, `open` afterwards.

    ``watch`` may be left out: another thread calls it, without arguments and several times a
    second, from the first `send` on. There can be seen what a `send` can't see that waits.
    """

    options: ClassVar[type[Options]]
    batch: ClassVar[int]
    """How many messages are best sent together."""
    formats: ClassVar[tuple[str, ...]]
    """The formats of bodies that it takes, the usual one first: ``jsonl``, ``template`` …"""

    def __init__(self, settings: Any) -> None:  # noqa: ANN401  (its own Options)
        """Check settings, load certificates and keys.

        Args:
            settings: Its options.

        Raises:
            KcapError: They are wrong.
        """

    def open(self) -> None:
        """Connect.

        Raises:
            InterruptedDeliveryError: The server is not there; try later.
            KcapError: It will never take anything from us: wrong password, unknown exchange.
        """

    def send(self, messages: Sequence[Message]) -> Sequence[Refused]:
        """Hand messages over in their order and wait until the server has them.

        Args:
            messages: At least one.

        Returns:
            Those that it refused for good, ascending; it has all the others.

        Raises:
            InterruptedDeliveryError: It is not known to have those behind the first ``taken``.
            KcapError: It will never take anything from us.
        """

    def close(self) -> None:
        """Hang up; may be called twice, and after an error."""
