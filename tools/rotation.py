"""The options of a recording that goes on in other files, or keeps just the last minute."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar

import click

from kcap.tools import common

if TYPE_CHECKING:
    from kcap.tools.parts import Template
    from kcap.tools.recorded import Rotation
    from kcap.tools.ring import Asked

_F = TypeVar("_F", bound=Callable[..., Any])

_LEAST_BYTES: Final = 1 << 20
"""A part begins with the state of the host, which takes a tenth of that."""

_LEAST_S: Final = 1.0

_RING_BYTES: Final = 256 << 20
_RING_LEAST_BYTES: Final = 4 << 20
_AFTER_S: Final = 10


class RotationOptions(TypedDict):
    """The options that `rotation_options` declares."""

    split_size: int | None
    split_time: float | None
    keep: int | None
    ring: float | None
    ring_size: int | None
    after: float | None
    on_signal: bool
    on_alert: tuple[str, ...]


def rotation_options(function: _F) -> _F:
    """``--split-size``, ``--split-time``, ``--keep``, ``--ring`` and what belongs to it."""
    for option in (
        click.option(
            "--ring-size",
            type=common.Size(),
            help=f"What --ring may hold in memory; default {_RING_BYTES >> 20}M.",
        ),
        click.option(
            "--after",
            type=common.Duration(),
            help=f"How much of what comes next a file of --ring has; default {_AFTER_S}s.",
        ),
        click.option(
            "--on-alert",
            multiple=True,
            metavar="RULE",
            help="With --ring: an alert of this rule writes a file; 'any': of any rule.",
        ),
        click.option("--on-signal", is_flag=True, help="With --ring: SIGUSR1 writes a file."),
        click.option(
            "--ring",
            type=common.Duration(),
            help="Write nothing, but hold this much time in memory, to be written when asked for.",
        ),
        click.option(
            "--keep",
            type=click.IntRange(1),
            metavar="N",
            help="Keep N files, former recordings of this name counted; the oldest go.",
        ),
        click.option(
            "--split-time",
            type=common.Duration(),
            help="Go on in another file after this time: 15m, 1h.",
        ),
        click.option(
            "--split-size", type=common.Size(), help="Go on in another file at this size: 100M."
        ),
    ):
        function = option(function)
    return function


def chosen(
    options: RotationOptions, target: str | None, *, force: bool = False
) -> Rotation | Asked | None:
    """When a recording is to go on in another file, or to be written at all.

    Args:
        options: The verb's options.
        target: The output that the user named.
        force: An existing file is to be replaced.

    Returns:
        None where it is to stay in one file.

    Raises:
        click.UsageError: The options make no sense.
    """
    from kcap.tools.recorded import Rotation

    size, every_s, keep = options["split_size"], options["split_time"], options["keep"]
    made: Rotation | Asked = Rotation(size, every_s, keep)
    if options["ring"] is not None:
        if size is not None or every_s is not None:
            raise click.UsageError("--ring writes when it is asked to: not with --split-…")
        made = _asked(options, options["ring"])
    elif (
        options["on_signal"]
        or options["on_alert"]
        or options["ring_size"] is not None
        or options["after"] is not None
    ):
        what = "--on-signal, --on-alert, --ring-size and --after"
        raise click.UsageError(f"{what} belong to --ring: 60s")
    elif made == Rotation():
        return None
    if target == "-":
        raise click.UsageError("this needs files: give -o FILE, or pipe into 'kcap split'")
    if force:
        raise click.UsageError("--force replaces one file; these get names that nothing has")
    if size is not None and size < _LEAST_BYTES:
        raise click.UsageError("--split-size: give 1M or more, each file begins with the host")
    if every_s is not None and every_s < _LEAST_S:
        raise click.UsageError("--split-time: give 1s or more")
    return made


def _asked(options: RotationOptions, before_s: float) -> Asked:
    """What a ring holds and writes."""
    from kcap.tools.ring import Asked

    size, after_s = options["ring_size"], options["after"]
    if not (options["on_signal"] or options["on_alert"]):
        raise click.UsageError(
            "--ring: give --on-signal, too: SIGUSR1 writes what is held; or --on-alert RULE"
        )
    if before_s < _LEAST_S:
        raise click.UsageError("--ring: give 1s or more")
    if size is not None and size < _RING_LEAST_BYTES:
        raise click.UsageError("--ring-size: give 4M or more")
    return Asked(
        before_s,
        _AFTER_S if after_s is None else after_s,
        _RING_BYTES if size is None else size,
        options["keep"],
    )


def parts_of(target: str) -> tuple[Template, list[tuple[int, str]]]:
    """The names of a recording's files, and the files that there are with such names.

    Args:
        target: As the user gave it: ``host.kcap`` means ``host-{n:06}.kcap``; ``{time}`` stands for
            when a part begins.

    Returns:
        The names, and the number and name of each file.

    Raises:
        click.UsageError: The braces can't be understood.
        OutputError: The folder can't be read.
    """
    from kcap.tools.parts import Template, with_number

    template = Template(with_number(target), by=False, timed=True)
    return template, [(number, str(path)) for number, path in template.numbered()]
