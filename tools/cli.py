"""The command line: ``kcap VERB``. Verbs are imported when they are called."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, NoReturn

import click

import kcap
from kcap.errors import KcapError, OutputError
from kcap.tools import logs, settings

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130

_CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Verb(NamedTuple):
    """Where a verb lives; enough to list it without importing it."""

    module: str
    section: str
    help: str
    hidden: bool = False
    command: tuple[str, ...] = ()
    """The way to a command of a group's, where the verb is a short name of that."""
    settings: bool = True
    """Its options may stand in a file of settings."""


_VERBS: Final = {
    "record": _Verb("record", "Capture", "Record what happens on this host."),
    "capture": _Verb("record", "Capture", "The same as record.", hidden=True),
    "run": _Verb("run", "Capture", "Print what happens on this host, as it happens."),
    "service": _Verb("service", "Capture", "Let systemd record this host, from boot on."),
    "import": _Verb(
        "import_", "Capture", "Turn foreign captures into a .kcap file, merged by time."
    ),
    **{
        f"{name}-service": _Verb(
            "service", "Capture", f"The same as service {name}.", hidden=True, command=(name,)
        )
        for name in ("install", "start", "stop", "restart", "remove")
    },
    "info": _Verb("info", "Look", "What a capture holds, on one screen."),
    "cat": _Verb("cat", "Look", "Print events."),
    "tree": _Verb("tree", "Look", "The process tree: who started whom, when, and how it ended."),
    "timeline": _Verb("timeline", "Look", "How many events over time, and when some were lost."),
    "stats": _Verb("stats", "Look", "Count events: by event, process, user, destination …"),
    "fields": _Verb("fields", "Look", "What a filter can ask for, and where it comes from."),
    "list": _Verb("list_", "Look", "Fields, events and columns that kcap knows."),
    "hunt": _Verb("hunt", "Look", "Look for indicators of compromise: hashes, addresses, names."),
    "diff": _Verb("diff", "Look", "Events that only one of two captures has."),
    "artifacts": _Verb(
        "artifacts", "Look", "Files, memory, programs beside the events; take them out."
    ),
    "query": _Verb("query", "Look", "Run SQL over captures."),
    "export": _Verb("export", "Look", "Write events for other programs: Parquet, Arrow, CSV."),
    "replay": _Verb("replay", "Replay", "Run a capture through the pipeline again."),
    "detect": _Verb("detect", "Detect", "Let rules look at captures, and print their alerts."),
    "rules": _Verb("rules", "Detect", "What rules there are, what they need, why they match."),
    "test": _Verb("test_", "Detect", "Whether rules raise the alerts that their tests expect."),
    "filter": _Verb("filter", "Rewrite", "Copy some of a capture's events, and nothing else."),
    "redact": _Verb(
        "redact", "Rewrite", "Hide secrets: tokens in their place, the rest as it was."
    ),
    "merge": _Verb("merge", "Rewrite", "Make one capture of several, by time."),
    "split": _Verb("split", "Rewrite", "Divide a capture into parts."),
    "recover": _Verb("recover", "Rewrite", "Save what is intact of a damaged capture."),
    "doctor": _Verb("doctor", "Check", "What this host can be recorded with, and what is missing."),
    "verify": _Verb("verify", "Check", "Check every byte of a capture."),
    "config": _Verb(
        "config", "Check", "The settings of all verbs, and where each comes from.", settings=False
    ),
    "docs": _Verb("docs", "Help", "Read the documentation.", settings=False),
    "man": _Verb("man", "Help", "The manual page of a verb.", settings=False),
    "completion": _Verb(
        "completion", "Help", "Shell completion for bash, zsh or fish.", settings=False
    ),
    "version": _Verb(
        "version", "Help", "Versions of kcap, Python and the libraries.", settings=False
    ),
}

_EXAMPLES: Final = (
    "kcap record -o host.kcap --duration 60",
    "kcap info host.kcap",
    "kcap replay host.kcap",
)


def verbs() -> Mapping[str, _Verb]:
    """What verbs there are, without importing them.

    Returns:
        Name to where it lives, in the order of the help.
    """
    return _VERBS


class Verb(click.Command):
    """A command whose help begins with examples."""

    def __init__(self, *args: Any, examples: tuple[str, ...] = (), **kwargs: Any) -> None:  # noqa: ANN401
        kwargs.setdefault("context_settings", _CONTEXT)
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params.append(
            click.Option(
                ["-v", "--verbose"],
                count=True,
                expose_value=False,
                callback=_set_verbose,
                help="Say more on standard error; twice: show where an error comes from.",
            )
        )

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,  # noqa: ANN401
    ) -> click.Context:
        """Read the arguments, and from the settings what they leave open."""
        defaults = settings.defaults(self, info_name, parent)
        if defaults is None:
            return super().make_context(info_name, args, parent, **extra)
        try:
            return super().make_context(info_name, args, parent, default_map=defaults, **extra)
        except click.BadParameter as error:
            raise defaults.blamed(error) from None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; a flag may be spelled with ``=true``."""
        end = args.index("--") if "--" in args else len(args)
        for param in self.params:
            if (plain := getattr(param, "plain", None)) is not None:
                args = [plain(word) if at < end else word for at, word in enumerate(args)]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run the verb, with the log that the settings name."""
        if isinstance(ctx.default_map, settings.Defaults) and not isinstance(self, click.Group):
            logs.begin(ctx)
        return super().invoke(ctx)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help, with the defaults that kcap has: 'kcap config' shows those of this host."""
        ctx.default_map = None
        super().format_help(ctx, formatter)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples before the description."""
        _write_examples(formatter, self.examples)
        super().format_help_text(ctx, formatter)


class VerbGroup(Verb, click.Group):
    """A verb that has verbs of its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Its verbs in the order in which they were written."""
        return list(self.commands)


class KcapGroup(click.Group):
    """The group of all verbs: lazy, with sections, and with kcap's exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order of the help."""
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb."""
        if cmd_name not in _VERBS:
            return None
        module = importlib.import_module(f"kcap.tools.{_VERBS[cmd_name].module}")
        command: click.Command | None = module.command
        for name in _VERBS[cmd_name].command:
            assert isinstance(command, click.Group), cmd_name
            command = command.get_command(ctx, name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or say which one was probably meant."""
        if args and args[0] not in _VERBS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], _VERBS, 1)
            meant = f" Did you mean {near[0]!r}?" if near else " Try 'kcap --help'."
            ctx.fail(f"No such verb: {args[0]!r}.{meant}")
        return super().resolve_command(ctx, args)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples before the description."""
        _write_examples(formatter, _EXAMPLES)
        super().format_help_text(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs by section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, verb in _VERBS.items():
            if not verb.hidden:
                sections.setdefault(verb.section, []).append((name, verb.help))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows, col_max=14)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:  # noqa: ANN401
        """Read the arguments; may print the help, and fail to."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A file's name need not be text, and a locale need not have every character.
            sys.stdout.reconfigure(errors="backslashreplace")
        with exit_codes():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run a verb; errors become one line and an exit code, here as under a test runner."""
        with logs.ending(ctx), exit_codes(ctx):
            return super().invoke(ctx)


@contextlib.contextmanager
def exit_codes(ctx: click.Context | None = None) -> Iterator[None]:
    """Turn what a verb may raise into messages and exit codes."""
    try:
        yield
    except KcapError as e:
        _fail(ctx, e)
    except BrokenPipeError:
        _forget_stdout()  # whoever read our output has seen enough
        raise click.exceptions.Exit(0) from None
    except KeyboardInterrupt:
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except OSError as e:
        # Inputs and named outputs have errors of their own; this is about standard output.
        _forget_stdout()
        _fail(ctx, OutputError(f"writing failed: {e.strerror or e}", file=e.filename or "-"))
    except MemoryError:
        what = "there is not enough memory for this"
        _fail(ctx, KcapError(what, hint="choose less: fewer columns, an interval of time"))
    except Exception as e:  # noqa: BLE001  (a defect of ours: still no traceback unasked)
        _fail(ctx, KcapError(f"internal error: {e!r}", hint="again with -vv, and report it"))


def _fail(ctx: click.Context | None, error: KcapError) -> NoReturn:
    if ctx is not None and ctx.find_root().meta.get("kcap.verbose", 0) > 1:
        traceback.print_exc()
    report(error)
    raise click.exceptions.Exit(error.exit_code) from None


def _forget_stdout() -> None:
    """Let nothing be flushed at exit into an output that takes no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report(error: KcapError) -> None:
    """Print an error as users see it.

    Args:
        error: The error.
    """
    from kcap.model.text import printable

    logs.tell(f"kcap: {printable(str(error))}", level="error")
    for note in getattr(error, "__notes__", ()):
        logs.tell(printable(note), level="error")
    if error.hint:
        logs.tell(f"hint: {printable(error.hint)}", level="error")


def _write_examples(formatter: click.HelpFormatter, examples: tuple[str, ...]) -> None:
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


def _set_verbose(ctx: click.Context, _param: click.Parameter, value: int) -> None:
    root = ctx.find_root()
    root.meta["kcap.verbose"] = max(root.meta.get("kcap.verbose", 0), value)


def _say_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"kcap {kcap.__version__}")
        ctx.exit()


@click.group(cls=KcapGroup, invoke_without_command=True, context_settings=_CONTEXT)
@click.option(
    "-v",
    "--verbose",
    count=True,
    expose_value=False,
    callback=_set_verbose,
    help="Say more on standard error; twice: show where an error comes from.",
)
@click.option(
    "--config",
    metavar="FILE",
    expose_value=False,
    callback=settings.name,
    help="Settings of all verbs, as YAML or TOML; '' for none. Default: see 'kcap config'.",
)
@click.option(
    "--log-file",
    metavar="FILE",
    expose_value=False,
    callback=settings.flag,
    help="Write what kcap says and does into a log, too.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    expose_value=False,
    callback=settings.flag,
    help="What the log has: this, and what is worse. Default: info.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_say_version,
    help="Say which kcap this is; 'kcap version' says more.",
)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Capture and replay of host telemetry: what pcap and its tools are to packets.

    Every verb takes every format that kcap can read, and '-' for a stream. Exit codes: 0 done,
    1 failed, 2 wrong usage, 3 finished but something was lost, skipped or damaged, 4 found
    something, where --exit-code asks for it.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
