"""What record and run share: which source, when it ends, and how it is asked to."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar

import click

from kcap.errors import KcapError
from kcap.tools import common, logs

if TYPE_CHECKING:
    from kcap.model.stream import LiveSource
    from kcap.readers.live.selection import Selection

_F = TypeVar("_F", bound=Callable[..., Any])

AUTO: Final = "auto"

ORDER: Final = ("bpf", "perf", "tracefs", "proc")
"""Live sources, the one that sees most first (`kcap.readers.live.capabilities.USED`)."""

ON_REQUEST: Final = ("audit",)
"""Those that change something of the host for as long as they record."""

CHOOSING: Final = "bpf"
"""The one that can be told what to leave out."""

TOLD_EVENTS: Final = ("perf", "tracefs", "audit")
"""Those that can be told which events are wanted."""


class LiveOptions(TypedDict):
    """The options that `live_options` declares."""

    source: str
    duration: float | None
    count: int | None


def live_options(function: _F) -> _F:
    """``--source``, ``--duration``, ``-n/--count``."""
    for option in (
        click.option(
            "-n", "--count", "--limit", "count", type=click.IntRange(0), help="Stop after N events."
        ),
        click.option(
            "--duration", type=common.Duration(), help="Stop after this time: 30, 5m, 2h."
        ),
        click.option(
            "--source",
            type=click.Choice([AUTO, *ORDER, *ON_REQUEST]),
            default=AUTO,
            show_default=True,
            help="What tells the events: bpf, a program in the kernel; perf and tracefs, the"
            " kernel's tracepoints, which tell less; proc, its process connector, which tells of"
            " processes alone; auto, the first of them that works here; audit, the audit system,"
            " which gets rules of ours as long as it is recorded.",
        ),
    ):
        function = option(function)
    return function


def opened(
    options: LiveOptions,
    *,
    interval_s: float,
    selection: Selection | None = None,
    details: Mapping[str, Any] | None = None,
    accompanied: bool = False,
) -> LiveSource:
    """Start listening to this host.

    Args:
        options: The verb's options.
        interval_s: Seconds between batches at most.
        selection: What is wanted; a source that can leaves out the rest early. None for all.
        details: What else a capture is to say of its recording.
        accompanied: Others will listen beside it.

    Returns:
        The source; whoever gets it closes it.

    Raises:
        KcapError: None of the sources works here, or the one that was asked for doesn't.
    """
    import pyarrow as pa

    from kcap import plugins

    # Arrow's own allocator takes memory in pages of 2 MiB, which the kernel has to find and clear,
    # and gives it back after every chunk: a tenth of what a recording costs.
    pa.set_memory_pool(pa.system_memory_pool())
    known = plugins.found(plugins.LIVE)
    asked = options["source"]
    wanted = list(ORDER) if asked == AUTO else [asked]
    built = [name for name in wanted if name in known]
    if not built:
        raise KcapError(
            f"this kcap has no live source called {wanted[0]}",
            expected=f"one of {', '.join(sorted(known))}",
        )
    for name, after in zip(built, [*built[1:], None], strict=True):
        try:
            if selection is not None and name != CHOOSING:
                _check_told(name, selection)
            made = plugins.load(plugins.LIVE, name)
            told = _told(name, selection, details or {})
            if accompanied and name == CHOOSING:
                told["accompanied"] = True
            source: LiveSource = made(interval_s=interval_s, **told)
        except KcapError as error:
            if after is None:
                raise
            logs.tell(f"kcap: {name}: {error.what}; trying {after} instead")
        else:
            return source
    raise AssertionError(built)


def _check_told(name: str, selection: Selection) -> None:
    """Refuse to record other things than those that were asked for.

    Raises:
        KcapError: Events, or call stacks, are wanted that the source never tells.
    """
    from kcap.readers.live import choice

    told = choice.told(name)
    # Of the default set every source tells what it can.
    asked = selection.chosen.asked & selection.events
    untold = [] if told is None else sorted(asked - told)
    if selection.stack:
        untold.append("call stacks")
    if untold:
        more = f" and {len(untold) - 1} more" if len(untold) > 1 else ""
        raise KcapError(
            f"{name} does not tell of {untold[0]}{more}",
            hint="record with --source bpf; 'kcap doctor' says what is missing for it",
        )


def _told(name: str, selection: Selection | None, details: Mapping[str, Any]) -> dict[str, Any]:
    """What a source is told of the recording, and one that chooses by itself of what is wanted."""
    from kcap.readers.live import choice
    from kcap.readers.live.choosing import DEFAULT

    if selection is None:
        return {"details": details}
    if name in TOLD_EVENTS:
        told = choice.told(name) or selection.events
        wanted = None if selection.chosen.text == DEFAULT else selection.events & told
        return {"events": wanted, "details": details}
    if name != CHOOSING:
        return {"details": details}
    chosen = {**details, "selection": selection.describe()}
    variables = selection.environment.names
    return {"setup": selection.setup(), "variables": variables, "details": chosen}


class Deadline:
    """Stops a source after some time.

    Args:
        source: The source.
        duration_s: Seconds from the first batch on, None for ever: before it, the source looks at
            the host as it is.
    """

    def __init__(self, source: LiveSource, duration_s: float | None) -> None:
        self._source = source
        self._duration_s = duration_s
        self._begun_s: float | None = None

    def check(self, now_s: float) -> None:
        """After each batch: stop when it is time.

        Args:
            now_s: The monotonic clock.
        """
        if self._begun_s is None:
            self._begun_s = now_s
        if self._duration_s is not None and now_s - self._begun_s >= self._duration_s:
            self._source.stop()


class _EndedError(BaseException):
    """A signal asks for the end before there is anything to end in order."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def undoing() -> Iterator[None]:
    """Until `stopping` holds: SIGTERM and a closed terminal undo what was begun, as Ctrl-C does.

    Else what a source has changed of the host would stay: rules of the audit system, an instance
    of tracefs.

    Yields:
        Nothing.
    """

    def end(number: int, _: object) -> None:
        raise _EndedError(number)

    before = {number: signal.signal(number, end) for number in _asking() - {signal.SIGINT}}
    try:
        yield
    except _EndedError as e:
        # As whoever started us expects.
        signal.signal(e.number, signal.SIG_DFL)
        signal.raise_signal(e.number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _asking() -> set[int]:
    """Signals that ask for the end: a closed terminal's does not where nohup(1) ignores it."""
    hangup = getattr(signal, "SIGHUP", signal.SIGTERM)
    ignored = signal.getsignal(hangup) is signal.SIG_IGN
    return {signal.SIGINT, signal.SIGTERM} | (set() if ignored else {hangup})


@contextlib.contextmanager
def stopping(
    source: LiveSource,
    *,
    twice: bool = False,
    acts: Mapping[str, Callable[[], object]] | None = None,
) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal end it in order: what was seen goes out first.

    Args:
        source: What to stop.
        twice: A second signal kills: where an output takes no more, waiting would have no end.
        acts: Signals, by name, that mean something else; what they have done must be safe there.

    Yields:
        Nothing.
    """
    asked = False
    others = {getattr(signal, name): act for name, act in (acts or {}).items()}

    def ask(number: int, _: object) -> None:
        nonlocal asked
        if number in others:
            others[number]()
            return
        if asked and twice:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        asked = True
        source.stop()

    before = {number: signal.signal(number, ask) for number in _asking() | {*others}}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
