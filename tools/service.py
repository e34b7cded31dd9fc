"""``kcap service``: a recording that systemd starts, watches and keeps going."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from kcap.errors import KcapError, OutputError
from kcap.tools import logs, service_status, service_unit, settings
from kcap.tools.cli import Verb, VerbGroup
from kcap.tools.systemd import Systemd, write_unit

_F = TypeVar("_F", bound=Callable[..., Any])

NAME: Final = "kcap"
FOLDER: Final = "/var/lib/kcap"
SPLIT: Final = ("--split-size", "256M")
KEEP: Final = ("--keep", "16")
"""How a recording without end stays within 4 GiB, unless its own options say something else."""

_CHECK_S: Final = 300


def _name_option(function: _F) -> _F:
    return click.option(
        "--name",
        default=NAME,
        show_default=True,
        callback=_checked,
        help="The service, where there are several.",
    )(function)


def _checked(_: click.Context, __: click.Parameter, value: str) -> str:
    try:
        service_unit.check_name(value)
    except KcapError as e:
        raise click.BadParameter(str(e)) from None
    return value


def _systemd(ctx: click.Context) -> Systemd:
    """This host's, or the one that a caller within this process gives."""
    return ctx.find_object(Systemd) or Systemd()


@click.group(
    "service",
    cls=VerbGroup,
    examples=(
        "kcap service install --now",
        "kcap service install --keep 100 --events process,net -w \"ps.name != 'cron'\"",
        "kcap service status",
        "kcap service stop",
    ),
)
def command() -> None:
    """Record this host for good: a service that starts at boot, and anew should it fail.

    This is systemd's. The captures come to lie in one folder, a new one each 256M or as the options
    of 'kcap record' say, and the oldest make room for new ones. What goes wrong is in the journal:
    journalctl -u kcap. 'systemctl reload kcap' begins a new file, or with --ring writes what is
    held; 'systemctl edit kcap' changes what the service may do.
    """


@command.command(
    "install",
    cls=Verb,
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
    examples=(
        "kcap service install --now",
        "kcap service install --output-folder /data/captures --split-time 1h --keep 48",
        "kcap service install --name web --scope comm=nginx --scope follow",
        "kcap service install --print > kcap.service",
    ),
)
@_name_option
@click.option(
    "--output-folder",
    "folder",
    default=FOLDER,
    show_default=True,
    help="Where the captures come to lie; made where it is missing.",
)
@click.option("--now", is_flag=True, help="Start it at once, too; else at the next boot.")
@click.option("--force", is_flag=True, help="Replace a unit of that name.")
@click.option("--print", "printed", is_flag=True, help="Print the unit file, and change nothing.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[RECORD OPTIONS]...")
@click.pass_context
def install(
    ctx: click.Context,
    name: str,
    folder: str,
    now: bool,
    force: bool,
    printed: bool,
    words: tuple[str, ...],
) -> None:
    """Install the service: it starts at boot.

    All other options, and a filter, are those of 'kcap record', and checked as it would. Without
    --split-size or --split-time a file has 256M; without --keep 16 files are kept. The service
    reads the settings of this host, in /etc/kcap, or the file that 'kcap --config' names now.
    """
    options, asking = _recording(ctx, words)
    unit = service_unit.Unit(
        name=name,
        program=(*_program(), *settings.words(ctx)),
        network=_sends(ctx, words),
        words=options,
        captures=os.path.normpath(Path(folder).absolute()),
        kill=shutil.which("kill", path="/usr/bin:/bin"),
        asking=asking,
    )
    if printed:
        click.echo(unit.text(), nl=False)
        return
    systemd = _systemd(ctx)
    systemd.check()
    _check_free(systemd, name, force=force)
    _check_program(unit.program)
    _make_folder(Path(unit.captures))
    path = systemd.path(name)
    write_unit(path, unit.text(), force=force)
    systemd.call("daemon-reload")
    systemd.call("enable", "--quiet", f"{name}.service")
    _say(f"{path} written; it starts at boot and records into {unit.captures}")
    if now:
        _start(systemd, name, "restart" if force else "start")


@command.command("start", cls=Verb, examples=("kcap service start",))
@_name_option
@click.pass_context
def start(ctx: click.Context, name: str) -> None:
    """Start the service; done when it records."""
    _start(_of_ours(ctx, name), name, "start")


@command.command("stop", cls=Verb, examples=("kcap service stop",))
@_name_option
@click.pass_context
def stop(ctx: click.Context, name: str) -> None:
    """Stop the service; done when its capture is closed.

    At the next boot it starts again; 'kcap service remove' ends that.
    """
    systemd = _of_ours(ctx, name)
    systemd.call("stop", f"{name}.service")
    found = service_status.look(systemd, name)
    _say(f"{name}.service has stopped: {found.ending}")
    if found.newest is not None:
        _say(found.newest.line())


@command.command("restart", cls=Verb, examples=("kcap service restart",))
@_name_option
@click.pass_context
def restart(ctx: click.Context, name: str) -> None:
    """Stop the service and start it.

    What happens between the two is not recorded.
    """
    _start(_of_ours(ctx, name), name, "restart")


@command.command("status", cls=Verb, examples=("kcap service status", "kcap service status --json"))
@_name_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_context
def status(ctx: click.Context, name: str, as_json: bool) -> None:
    """Say how the service is: state, process, captures.

    Of the newest capture it says when it was written last: a recording gives a sign of life each
    second. The exit code is 0 while it records, else 1.
    """
    systemd = _systemd(ctx)
    systemd.check_runs()
    found = service_status.look(systemd, name)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2, sort_keys=True))
    else:
        click.echo(found.text())
    ctx.exit(0 if found.active else 1)


@command.command("remove", cls=Verb, examples=("kcap service remove",))
@_name_option
@click.pass_context
def remove(ctx: click.Context, name: str) -> None:
    """Stop the service and take its unit away.

    The captures stay where they are.
    """
    systemd = _of_ours(ctx, name)
    folder, path = systemd.captures(name), systemd.path(name)
    systemd.call("disable", "--quiet", "--now", f"{name}.service")
    if systemd.properties(name, "ActiveState").get("ActiveState") == "failed":
        systemd.call("reset-failed", f"{name}.service")
    try:
        path.unlink()
    except OSError as e:
        raise OutputError(f"can't be removed: {e.strerror}", file=str(path)) from e
    systemd.call("daemon-reload")
    _say(f"{path} removed; its captures stay in {folder}")


def _of_ours(ctx: click.Context, name: str) -> Systemd:
    """The service manager, of a service that may be changed."""
    systemd = _systemd(ctx)
    systemd.check()
    systemd.captures(name)
    return systemd


def _start(systemd: Systemd, name: str, how: str) -> None:
    """Start or restart, and say what it does then, or why it does not."""
    if systemd.properties(name, "ActiveState").get("ActiveState") == "failed":
        systemd.call("reset-failed", f"{name}.service")  # or a limit that it met still counts
    try:
        systemd.call(how, f"{name}.service")
    except KcapError as e:
        for line in _last_words(systemd.journal(name)):
            e.add_note(line)
        e.hint = e.hint or f"all it said: journalctl -u {name}"
        raise
    found = service_status.look(systemd, name)
    _say(f"{name}.service records since {found.since_text}: {found.folder}")


def _last_words(lines: Sequence[str]) -> list[str]:
    """The last error in the journal, with its hint."""
    errors = [n for n, line in enumerate(lines) if line.startswith("kcap: ")]
    return list(lines[errors[-1] :]) if errors else []


def _say(text: str) -> None:
    from kcap.model.text import printable

    logs.tell(f"kcap: {printable(text)}")


def _recording(ctx: click.Context, words: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The options of the recording, where record understands them.

    Returns:
        Those that were given, with others that keep it within bounds; and the signal that asks it
        for a file.
    """
    from kcap.tools import common, live_select, record, rotation

    root = ctx.find_root()
    parsed = record.command.make_context("record", list(words), root)
    given = parsed.params
    if parsed.get_parameter_source("outputs") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("-o is not for a service; its captures go to --output-folder", ctx)
    where = common.filter_given(parsed, given["where"], given["words"])
    live_select.chosen(given, where)  # type: ignore[arg-type]  # its own options among others
    added: list[str] = []
    if all(given[option] is None for option in ("split_size", "split_time", "ring")):
        added += SPLIT
    if given["keep"] is None:
        added += KEEP
    whole = (*added, *words)
    options = record.command.make_context("record", list(whole), root).params
    rotation.chosen(options, None, force=given["force"])  # type: ignore[arg-type]
    return whole, "HUP" if given["ring"] is None else "USR1"


def _sends(ctx: click.Context, words: Sequence[str]) -> bool:
    """Whether what is recorded also goes to sinks, as options or settings say."""
    from kcap.tools import record

    parsed = record.command.make_context("record", list(words), ctx.find_root())
    return bool(parsed.params["sinks"] or settings.of(ctx).sinks)


def _program() -> tuple[str, ...]:
    """What runs this kcap, wherever it is started and whatever the surroundings say."""
    launcher = Path(sys.argv[0]).absolute()
    if launcher.name == "kcap" and Path(__file__).absolute().is_relative_to(launcher.parent):
        return (str(launcher),)  # a bundle, whose Python finds nothing by itself
    if not sys.executable:
        raise KcapError("Python does not know its own program", expected="sys.executable")
    return (str(Path(sys.executable).absolute()), "-I", "-m", "kcap.tools")


def _check_program(program: Sequence[str]) -> None:
    """Refuse what would not start at boot, or what others than root could change until then."""
    import kcap
    from kcap import trust

    for path in (program[0], kcap.__file__):
        trust.check(path)
    try:
        done = subprocess.run(  # noqa: S603  (this very program)
            [*program, "--version"],
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CHECK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise KcapError(f"kcap does not start: {e}", file=program[0]) from e
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise KcapError(
            f"kcap does not start outside of this folder: {''.join(last)}",
            file=program[0],
            hint="install it where only root writes, as with"
            " 'python3 -m venv /opt/kcap && /opt/kcap/bin/pip install kcap'",
        )


def _check_free(systemd: Systemd, name: str, *, force: bool) -> None:
    """Refuse the name of a unit that is there, in whatever folder of systemd's."""
    found = systemd.properties(name, "FragmentPath").get("FragmentPath")
    if found and not force:
        raise OutputError(
            "there is such a unit already",
            file=found,
            hint="give another --name, or --force to replace it",
        )


def _make_folder(path: Path) -> None:
    """A folder for captures: they tell everything of a host, so it is root's alone."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        raise OutputError(
            "there is no folder for it", file=str(path), hint=f"mkdir -p {path.parent}"
        ) from None
    except OSError as e:
        raise OutputError(f"can't be made: {e.strerror}", file=str(path)) from e
