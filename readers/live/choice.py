"""Which live source to record this host with, and why not a better one."""

from __future__ import annotations

from typing import Final, NamedTuple

from kcap.readers.live.capabilities import USED, Capability, Host, capability


class Choice(NamedTuple):
    """What came out."""

    source: str | None
    """The best source that works here; None where none does."""
    refused: dict[str, str]
    """Better ones, and why they can't be used."""


def told(source: str) -> frozenset[str] | None:
    """The events that a source can tell of.

    Args:
        source: One of `USED`, or ``audit``.

    Returns:
        Their names in the recorder's catalogue; None where it tells of all of them.
    """
    from kcap.readers.live.audit import rules
    from kcap.readers.live.bpf import events
    from kcap.readers.live.trace import points

    if source in ("perf", "tracefs"):
        return points.told()
    if source == "audit":
        return rules.told()
    if source == "proc":
        return frozenset(_BY_PROC).union(*(events.sets()[name] for name in _SETS_BY_PROC))
    return None


_SETS_BY_PROC: Final = ("process", "creds", "clone")
_BY_PROC: Final = ("ptrace",)


def choose(tried: list[Capability] | None = None) -> Choice:
    """Choose among the sources that kcap records with.

    Args:
        tried: What came out of trying them; else they are tried, until one works.

    Returns:
        The first that works, in the order of what they tell.
    """
    refused: dict[str, str] = {}
    known = {one.source: one for one in tried or ()}
    host = None if tried else Host.read()
    for source in USED:
        one = known[source] if host is None else capability(source, host)
        if one.usable:
            return Choice(source, refused)
        refused[source] = one.why
    return Choice(None, refused)
