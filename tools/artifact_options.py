"""``--artifacts``: what is asked for, and what of a recording that needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypedDict, TypeVar

import click

from kcap.tools import live_select, logs

if TYPE_CHECKING:
    from kcap.filter import Filter
    from kcap.readers.live.artifacts.wanted import Wanted

_F = TypeVar("_F", bound=Callable[..., Any])

PACKETS: Final = "net_packet"
"""How the names of events begin that are packets: no recorder sees those, a companion does."""

NOTHING: Final = "none"
_FORMATS: Final = (NOTHING, "json")
_OPTION: Final = "option:"
"""What Tracee's ``--output`` takes, and is no file."""

_WRITTEN: Final = ("open", "openat", "openat2", "creat")
_MEMORY: Final = ("mmap", "mprotect", "pkey_mprotect")
_MODULES: Final = ("init_module", "finit_module")
_STATE: Final = ("sched_process_exec", "sched_process_fork", "sched_process_exit")


class ArtifactOptions(TypedDict):
    """The options that `artifact_options` declares."""

    artifacts: tuple[str, ...]


class Asked(NamedTuple):
    """What a recording keeps beside events."""

    wanted: Wanted
    folder: str | None = None
    """Where it is laid out at the end."""
    clear: bool = False
    """What an earlier recording left there goes before."""
    packets: Filter | None = None
    """Which packets, by the names of events; None for all."""
    text: str = ""
    """As it was asked for."""
    alone: bool = False
    """No events are recorded, but artifacts and packets."""


def artifact_options(function: _F) -> _F:
    """``--artifacts``, ``--list-artifacts``, and Tracee's ``--capture``."""
    for option in (
        click.option(
            "--list-artifacts",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_list,
            help="Print what --artifacts takes, and exit.",
        ),
        click.option("--capture", "artifacts", multiple=True, hidden=True, help="As --artifacts."),
        click.option(
            "--artifacts",
            multiple=True,
            metavar="LIST",
            help="Keep files, memory, packets, too: exec, write=/tmp/*, read:fd=stdin, mem,"
            " module, bpf, network, dir:DIR …; all that Tracee's --capture takes.",
        ),
    ):
        function = option(function)
    return function


def target(outputs: Sequence[str]) -> tuple[str | None, bool]:
    """Where a recording goes, of all that stands behind ``--output``.

    Tracee's ``--output`` says how events are printed. Of that ``none`` has a meaning here; a name
    that is one of these words needs a suffix or a folder: ``./none.kcap``.

    Args:
        outputs: The values, in their order.

    Returns:
        The name, None for the default; and whether no events are to be in it.

    Raises:
        click.UsageError: There is more than one.
    """
    names = [each for each in outputs if each not in _FORMATS and not each.startswith(_OPTION)]
    for each in outputs:
        if each != NOTHING and each not in names:
            logs.tell(
                f"kcap: --output {each}: what is recorded is a capture;"
                " 'kcap export --format tracee' prints it as Tracee does"
            )
    if len(names) > 1:
        raise click.UsageError(f"--output {names[1]}: it goes to {names[0]} already; give one file")
    return (names[0] if names else None), NOTHING in outputs


def read(
    options: ArtifactOptions, select: live_select.SelectOptions, target: str, *, alone: bool
) -> Asked | None:
    """What is asked for; events of packets are taken from the names of other events.

    Args:
        options: The verb's options.
        select: Those that say which events; changed.
        target: Where the recording goes.
        alone: No events are recorded, but artifacts.

    Returns:
        It, None for no artifacts; what a user should know of it is told on standard error.

    Raises:
        KcapError: It can't be understood.
        click.UsageError: It does not go together with the rest.
    """
    from kcap.readers.live.artifacts import spelling

    names = _packets(select)
    texts = options["artifacts"]
    if names and not texts:
        texts = ("network", "pcap-options:filtered")
        logs.tell("kcap: packets: --artifacts network,pcap-options:filtered")
    if not texts:
        if alone:
            raise click.UsageError("--output none: nothing is left to record; add --artifacts")
        return None
    asked = spelling.read(texts)
    network = asked.wanted.network
    if names and network is None:
        raise click.UsageError(f"--events {names[0]}: of which packets? Add --artifacts network")
    if asked.folder is not None and target == "-":
        raise click.UsageError("--artifacts dir: needs a file: give -o FILE")
    for note in asked.notes:
        logs.tell(f"kcap: {note}")
    chosen = _chosen(names) if network is not None and network.filtered else None
    text = ",".join(texts)
    return Asked(asked.wanted, asked.folder, asked.clear, chosen, text, alone)


def turn_on(select: live_select.SelectOptions, asked: Asked | None) -> None:
    """Let a recorder be asked for the events that artifacts belong to, and say so.

    Args:
        select: The options that say which events; changed.
        asked: What is asked for, None for no artifacts.

    Raises:
        KcapError: There is no such event.
    """
    if asked is None:
        return
    from kcap.readers.live import choosing
    from kcap.readers.live.scopes import Choice

    choices, _ = live_select.choices(select)
    found = choosing.choose(choices)
    dropped = {choice.name for choice in choices if choice.drop}
    lacking = [n for n in _needed(asked.wanted) if n not in found.events and n not in dropped]
    turned = []
    if lacking:
        default = all(choice.drop for choice in choices)
        names = (*(("default",) if default else ()), *lacking)
        select["wanted"] = (*select["wanted"], *names)
        turned.append(f"--events {','.join(names)}")
    files = asked.wanted.read
    if select["opens"] is None and files is not None and files.files:
        select["opens"] = "all"
        turned.append("--opens all")
    elif select["opens"] is None and lacking and not found.opens:
        # Asking for opens by name would mean all of them.
        select["opens"] = "writes"
    if turned:
        logs.tell(f"kcap: the artifacts: {' '.join(turned)}")
    late = choosing.choose([*choices, *map(Choice, lacking)])
    unheard = [n for n in _needed(asked.wanted) if n not in late.events]
    if unheard:
        logs.tell(
            f"kcap: the artifacts: not recorded: {', '.join(unheard)}: no event tells whose they"
            " are",
            level="warning",
        )


def _needed(wanted: Wanted) -> list[str]:
    """The events that artifacts belong to."""
    files = [each for each in (wanted.write, wanted.read) if each is not None and each.files]
    groups = (
        (wanted.exec, ("sched_process_exec",)),
        (bool(files), _WRITTEN),
        (wanted.mem, _MEMORY),
        (wanted.module, _MODULES),
        (wanted.bpf, ("bpf",)),
    )
    return [name for is_wanted, names in groups if is_wanted for name in names]


def _packets(select: live_select.SelectOptions) -> list[str]:
    """Take the names of packets out of those of events; where no others are left, the state's."""
    names, rest = [], []
    for text in select["wanted"]:
        pieces = text.split(",") if "=" not in text else [text]
        names += [each.strip() for each in pieces if each.strip().startswith(PACKETS)]
        others = [each for each in pieces if not each.strip().startswith(PACKETS)]
        if others:
            rest.append(",".join(others))
    if names:
        alone = not rest and not select["sets"]
        select["wanted"] = _STATE if alone else tuple(rest)
    return names


def _chosen(names: list[str]) -> Filter | None:
    """A filter for packets of some names."""
    from kcap.filter import Filter

    if not names or PACKETS in names:
        return None
    listed = ", ".join(f"'{name}'" for name in names)
    return Filter.of(f"evt.name in ({listed})")


def _list(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        _print(ctx)


def _print(ctx: click.Context) -> NoReturn:
    """Print what ``--artifacts`` takes."""
    from kcap.readers.live.artifacts.spelling import LISTING
    from kcap.tools.docs import table

    click.echo(table([(f"  {name}", what) for name, what in LISTING]))
    ctx.exit()
