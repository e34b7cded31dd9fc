"""Artifacts on their way through a pipeline: files, memory and streams beside the events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol


class Gap(NamedTuple):
    """A range of an artifact that has no bytes."""

    length: int
    reason: str | None = None
    """Why its bytes are missing; None for a hole: the artifact is sparse, and zeros are there."""


class Content(Protocol):
    """The bytes of an artifact, wherever they are kept meanwhile."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that are held for it."""

    def parts(self) -> Iterator[bytes | Gap]:
        """The content from its start; may be asked for again.

        Yields:
            Bytes in any division, and a gap for each range that has none.

        Raises:
            OSError: It can't be read any more.
        """


@dataclass(frozen=True, slots=True)
class Parts:
    """Content that is in memory."""

    held: Sequence[bytes | Gap]

    @property
    def nbytes(self) -> int:
        """See `Content`."""
        return sum(len(part) for part in self.held if not isinstance(part, Gap))

    def parts(self) -> Iterator[bytes | Gap]:
        """See `Content`."""
        return iter(self.held)


@dataclass(frozen=True, slots=True, eq=False)
class Artifact:
    """An artifact that a source gives beside its events; a capture keeps it as a blob."""

    kind: str
    """``exec``, ``write``, ``read``, ``mem``, ``module``, ``bpf``."""
    content: Content
    path: str | None = None
    """Where it was."""
    origin: str | None = None
    """With ``ord`` the event for which it was taken."""
    ord: int | None = None
    truncated: str | None = None
    """Why an end of unknown length is not there; None where the end is known."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of it, as plain JSON values: spec/kcap.md, clause 9."""

    @property
    def described(self) -> dict[str, Any]:
        """The details of its blob, the kind among them."""
        return {**self.details, "kind": self.kind}
