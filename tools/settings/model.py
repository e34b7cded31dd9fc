"""What settings say, merged and checked: what a run asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from kcap.filament.limits import Limits
from kcap.tools.settings.secrets import Known, masked_url, masked_value

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("text", "json")


@dataclass(frozen=True, slots=True)
class SinkSpec:
    """An output that settings name."""

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """The transport's and the delivery's options, beside those in the URL; secrets resolved."""
    source: str = ""
    """Where it stands."""
    secret: tuple[str, ...] = ()
    """The names of options that its transport calls secret."""

    def __repr__(self) -> str:
        """Without its secrets."""
        options = masked_value("", dict(self.options), secret=self.secret)
        url = masked_url(self.url, secret=self.secret)
        return f"SinkSpec({url!r}, {options!r}, {self.source!r})"


@dataclass(frozen=True, slots=True)
class TransformerSpec:
    """A change of events before any output."""

    name: str
    arguments: Any
    """As YAML has them; `kcap.transform` says what they may be."""
    source: str = ""
    """Where it stands."""


@dataclass(frozen=True, slots=True)
class FilamentSettings:
    """Where filaments are found, and what one may take."""

    path: tuple[str, ...] = ()
    """Folders, before that of kcap's own filaments."""
    limits: Limits = field(default_factory=Limits)
    """What one may take."""


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    """The log of what kcap says and does."""

    file: str | None = None
    level: str = "info"
    format: str = "text"
    max_bytes: int = 10 << 20
    keep: int = 5
    """How many files that were full are kept."""
    found: bool = False
    """It is in a file of settings that nobody named: where it can't be written, that is told."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All that does not belong to a verb."""

    sinks: tuple[SinkSpec, ...] = ()
    transformers: tuple[TransformerSpec, ...] = ()
    filament: FilamentSettings = FilamentSettings()
    logging: LoggingSettings = LoggingSettings()
    known: Known = field(default_factory=Known, repr=False, compare=False)
    """The secrets in it."""

    def with_sinks(self, urls: Sequence[str], source: str = "--sink") -> Settings:
        """What holds where the command line names outputs: those, in place of the others.

        Args:
            urls: The outputs; none of them leaves what there is.
            source: Where they stand.

        Returns:
            The settings of the run.
        """
        if not urls:
            return self
        for url in urls:
            self.known.add_url(url)
        return replace(self, sinks=tuple(SinkSpec(url, {}, source) for url in urls))
