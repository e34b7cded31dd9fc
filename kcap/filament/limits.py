"""What a filament may take, and what a run does with its ticks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kcap.errors import KcapError

SOURCE_BYTES: Final = 1 << 20
"""Longest file of a filament, or of a module beside it."""

FRAME_BYTES: Final = 256 << 20
"""Longest message between a filament and the run, in either direction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one filament; a filament that goes beyond one ends the run."""

    memory_bytes: int = 512 << 20
    """Address space of its process."""
    call_s: float = 10.0
    """How long one call of it may take."""
    output_bytes: int = 1 << 20
    """What one call of it may print."""
    rows: int = 100_000
    """Rows of a table that wait to be drawn."""
    alerts: int = 100_000
    """Alerts of one run."""
    catchup_ticks: int = 100_000
    """Ticks that may be due between two events: a day of them, one a second."""
    last_interval: bool = False
    """Call ``on_interval`` once more at the end, where there were events since its last call."""

    def __post_init__(self) -> None:
        """See that every limit leaves room for something."""
        for name in ("memory_bytes", "call_s", "output_bytes", "rows", "alerts", "catchup_ticks"):
            if getattr(self, name) <= 0:
                raise KcapError(
                    f"{name} of a filament is {getattr(self, name)}", expected="more than 0"
                )
