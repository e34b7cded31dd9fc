"""The options by which record and run are told what is wanted of this host."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypedDict, TypeVar

import click

from kcap.tools import logs

if TYPE_CHECKING:
    from kcap.filter import Filter
    from kcap.readers.live.scopes import Choice
    from kcap.readers.live.selection import Selection

_F = TypeVar("_F", bound=Callable[..., Any])

NAMES_ONLY: Final = "proc"
"""The source that can't be told which events."""


class SelectOptions(TypedDict):
    """The options that `select_options` declares."""

    source: str
    wanted: tuple[str, ...]
    sets: tuple[str, ...]
    exclude: tuple[str, ...]
    scope: tuple[str, ...]
    env: str | None
    stack: bool
    opens: str | None


def select_options(function: _F) -> _F:
    """``--events``, ``--set``, ``--exclude``, ``--scope``, ``--opens``, ``--env``, ``--stack``."""
    for option in (
        click.option(
            "--list-events",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_list_events,
            help="Print the events and sets that there are, and exit.",
        ),
        click.option("--stack", is_flag=True, help="Record the addresses of the call stack."),
        click.option(
            "--env",
            metavar="all|none|NAMES",
            help="Variables of an execution's environment, as HOME,AWS_*; default"
            " LD_*,KUBERNETES_SERVICE_*.",
        ),
        click.option(
            "--opens",
            type=click.Choice(["all", "writes"]),
            help="Opened files: all, or those that may be written; writes unless --events asks"
            " for opens.",
        ),
        click.option("--trace", "scope", multiple=True, hidden=True, help="As --scope."),
        click.option("--filter", "scope", multiple=True, hidden=True, help="As --scope."),
        click.option(
            "--scope",
            multiple=True,
            metavar="EXPR",
            help="Only this: uid=0, pid=new, comm=ssh*, binary=/usr/bin/curl, container,"
            " !container, tree=PID, follow, mntns=, pidns=, uts=. All that are given must hold.",
        ),
        click.option("--exclude", multiple=True, metavar="NAMES", help="Leave these events out."),
        click.option(
            "--set", "sets", multiple=True, metavar="SETS", help="Events of these sets, too."
        ),
        click.option(
            "--events",
            "wanted",
            multiple=True,
            metavar="NAMES",
            help="Events, sets and patterns: process,connect,open*,-openat; without it those of the"
            " set 'default'.",
        ),
    ):
        function = option(function)
    return function


def chosen(options: SelectOptions, where: Filter | None) -> Selection:
    """What the options and a filter ask for, on this host as it is now.

    Args:
        options: The verb's options.
        where: Its filter.

    Returns:
        The selection; what the user should know of it is told on standard error.

    Raises:
        KcapError: A scope can't be understood, there is no such event, or no such process.
    """
    from kcap.readers.live.selection import Environment, select
    from kcap.readers.live.subjects import look

    given, expressions = choices(options)
    selection = select(
        choices=given,
        scopes=[*options["scope"], *expressions],
        opens=options["opens"],
        environment=None if options["env"] is None else Environment.of(options["env"]),
        stack=options["stack"],
        where=where,
        real=os.path.realpath,
    )
    for note in selection.notes if options["source"] != NAMES_ONLY else ():
        logs.tell(f"kcap: {note}")
    return selection.at(look(selection.scope))


def choices(options: SelectOptions) -> tuple[list[Choice], list[str]]:
    """The events that options name, and the conditions among them.

    Args:
        options: The verb's options.

    Returns:
        Both.

    Raises:
        click.UsageError: A name is missing.
    """
    from kcap.readers.live.scopes import Choice, is_expression

    found: list[Choice] = []
    expressions = []
    for text in options["wanted"]:
        if is_expression(text):
            expressions.append(text)
            continue
        names = _names(text, "--events")
        found += [Choice(n.removeprefix("-"), drop=n.startswith("-")) for n in names]
    found += [Choice(n, sets_only=True) for text in options["sets"] for n in _names(text, "--set")]
    found += [
        Choice(n, drop=True) for text in options["exclude"] for n in _names(text, "--exclude")
    ]
    return found, expressions


def _names(text: str, option: str) -> Iterable[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(name.removeprefix("-") for name in names):
        raise click.UsageError(f"{option} {text!r}: a name is missing")
    return names


def _list_events(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        _print_events(ctx)


def _print_events(ctx: click.Context) -> NoReturn:
    """Print what ``--events`` takes."""
    from kcap.readers.live import choosing
    from kcap.readers.live.bpf import events as catalogue
    from kcap.tools.docs import table

    rows = [(f"  {name}", ", ".join(event.sets)) for name, event in catalogue.events().items()]
    views = [
        (f"  {name}", f"of {', '.join(bases)}")
        for name, bases in sorted(choosing.derived().items())
        if name not in catalogue.events()
    ]
    own = {*catalogue.sets(), "all", "syscalls"}
    theirs = ", ".join(sorted(set(choosing.sets()) - own))
    click.echo(f"events, and the sets that they are in\n{table(rows)}\n")
    click.echo(f"views, which record the events that they are made of\n{table(views)}\n")
    click.echo(f"more sets: all, syscalls, {theirs}")
    ctx.exit()
