"""``--view``: the output of forkstat or execsnoop, with those tools' own options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypedDict, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kcap.model.stream import Sink
    from kcap.replay.pipeline import Stage
    from kcap.writers.views.view import View

_F = TypeVar("_F", bound=Callable[..., Any])

_PLAIN: Final = ("form", "template", "template_file", "containers", "fields", "state")
"""Options of a verb that say what its output looks like, which a view does itself."""


class ViewOptions(TypedDict):
    """The options that `view_option` declares."""

    view: str | None
    events: str | None


def view_option(function: _F) -> _F:
    """``--view``, ``-e``."""
    for option in (
        click.option(
            "-e",
            "events",
            metavar="EVENTS",
            help="The same as --view 'forkstat -e EVENTS': fork, exec, exit, core, comm, clone,"
            " ptrce, uid, sid, all.",
        ),
        click.option(
            "--view",
            metavar="TOOL",
            help="Print what forkstat or execsnoop would. Their own options go in the same quotes:"
            " 'execsnoop -xT'; 'forkstat --help' lists them.",
        ),
    ):
        function = option(function)
    return function


def chosen(ctx: click.Context, options: ViewOptions) -> View | None:
    """The view that a verb was asked for.

    Args:
        ctx: The verb's context.
        options: Its options.

    Returns:
        The view; None where none was asked for.

    Raises:
        click.UsageError: There is no such view, or no such option of it, or an option of the verb
            asks for another form as well.
    """
    text, events = options["view"], options["events"]
    if text is None:
        if events is not None:
            raise click.UsageError("-e chooses events of --view forkstat; for others give a filter")
        return None
    given = [name for name in _PLAIN if _is_given(ctx, name)]
    if given:
        name = "format" if given[0] == "form" else given[0].replace("_", "-")
        raise click.UsageError(f"--view has a form of its own: leave out --{name}")
    try:
        name, *words = shlex.split(text) or [""]
    except ValueError as error:
        raise click.UsageError(f"--view {text!r}: {str(error).lower()}") from error
    tool = _TOOLS.get(name)
    if tool is None:
        raise click.UsageError(f"there is no view {name!r}: one of {', '.join(sorted(_TOOLS))}")
    if events is not None:
        if name != "forkstat":
            raise click.UsageError("-e chooses events of --view forkstat")
        words += ["-e", events]
    view: View = tool.main(words, prog_name=f"--view {name}", standalone_mode=False, parent=ctx)
    if isinstance(view, int):
        ctx.exit(view)  # its help was asked for
    return view


def viewing(view: View, stream: BinaryIO, stages: Sequence[Stage]) -> tuple[Sink, list[Stage]]:
    """Put a view into a pipeline.

    Args:
        view: The view.
        stream: Where it prints.
        stages: What else there is between source and sink.

    Returns:
        The sink, and all stages: what follows every event, the given ones, and the view.
    """
    from kcap.writers.views.lifetimes import Lifetimes
    from kcap.writers.views.view import Lines

    return Lines(stream, view), [Lifetimes(), *stages, view]


def _is_given(ctx: click.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


@click.command("forkstat", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-e", "events", multiple=True, metavar="EVENTS", help="Which, separated by commas.")
@click.option("-E", "every", is_flag=True, help="All: the same as -e all.")
@click.option("-c", "comm", is_flag=True, help="The kernel's name of a task, not its command line.")
@click.option("-d", "base", is_flag=True, help="Programs without their folder.")
@click.option("-s", "short", is_flag=True, help="Programs without their arguments.")
@click.option("-g", "glyphs", is_flag=True, help="A sign before the info.")
@click.option("-x", "extra", is_flag=True, help="User and effective user too.")
@click.option("-S", "statistics", is_flag=True, help="Count events by process, at the end.")
@click.option("-q", "quiet", is_flag=True, help="Only the counts.")
@click.option("-X", "most", is_flag=True, help="The same as -EgSx.")
@click.option("-l", "lines", is_flag=True, help="Lines go out at once: they do anyway.")
def _forkstat(
    events: tuple[str, ...],
    every: bool,
    comm: bool,
    base: bool,
    short: bool,
    glyphs: bool,
    extra: bool,
    statistics: bool,
    quiet: bool,
    most: bool,
    lines: bool,  # noqa: ARG001
) -> View:
    """Show processes as forkstat does: a line for each thing that happens to them.

    EVENTS are fork, exec, exit, core, comm, clone, ptrce, uid, sid, all; without -e the first
    three. Each fork has a line for the parent and one for the child, each new thread (clone) as
    well. The info of an exit is its wait status: 256 for exit code 1, 9 for signal 9. Times are
    UTC.
    """
    from kcap.writers.views.forkstat import DEFAULT, EVENTS, Forkstat, Form

    names = {name.strip() for text in events for name in text.split(",")}
    for name in sorted(names - {*EVENTS, "all"}):
        raise click.UsageError(f"there is no event {name!r}: {', '.join(EVENTS)}, all")
    wanted = frozenset(EVENTS) if every or most or "all" in names else frozenset(names) or DEFAULT
    return Forkstat(
        Form(
            events=wanted,
            comm=comm,
            base=base,
            short=short,
            extra=extra or most,
            glyphs=glyphs or most,
            statistics=statistics or quiet or most,
            quiet=quiet,
        )
    )


class _Pattern(click.ParamType["re.Pattern[str]"]):
    """A regular expression."""

    name = "regex"

    def convert(
        self,
        value: Any,  # noqa: ANN401  (as click declares it)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> re.Pattern[str]:
        """Compile it."""
        try:
            return re.compile(value)
        except re.error as error:
            self.fail(f"{value!r} is no regular expression: {error}", param, ctx)


@click.command("execsnoop", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-T", "--time", is_flag=True, help="The time of day, UTC.")
@click.option("-t", "--timestamp", is_flag=True, help="Seconds since the first event.")
@click.option("-x", "--fails", is_flag=True, help="Failed executions too, RET is the error.")
@click.option("-u", "--uid", "user", metavar="USER", help="Only of this user, a name or a number.")
@click.option("-P", "--ppid", type=int, help="Only of this parent.")
@click.option("-q", "--quote", is_flag=True, help="Arguments in quotation marks.")
@click.option("-n", "--name", type=_Pattern(), help="Only where the process is called like this.")
@click.option("-l", "--line", type=_Pattern(), help="Only where the arguments have this.")
@click.option("-U", "--print-uid", "show_uid", is_flag=True, help="The user id.")
@click.option(
    "-a",
    "--max-args",
    type=click.IntRange(1),
    help="Arguments to print at most.  [default: 20; with --perf 8]",
)
@click.option("--perf", is_flag=True, help="The columns of perf-tools' execsnoop, not of bcc's.")
@click.argument("pattern", required=False, type=_Pattern(), metavar="[NAME]")
def _execsnoop(
    max_args: int | None,
    perf: bool,
    pattern: re.Pattern[str] | None,
    **options: Any,  # noqa: ANN401
) -> View:
    """Show executions as bcc's execsnoop does: PCOMM PID PPID RET ARGS.

    NAME, as perf-tools' has it, is the same as -n NAME. The first argument is the path that the
    caller gave, where the capture has it.
    """
    from kcap.writers.views.execsnoop import Execsnoop, Form

    options["name"] = options["name"] or pattern
    return Execsnoop(Form(max_args=max_args or (8 if perf else 20), perf=perf, **options))


_TOOLS: Final[Mapping[str, click.Command]] = {"execsnoop": _execsnoop, "forkstat": _forkstat}
