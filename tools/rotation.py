"""The options of a recording that goes on in other files, or keeps just the last minute."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar

import click

from kcap.tools import common

if TYPE_CHECKING:
    from kcap.tools.parts import Template
    from kcap.tools.recorded import Rotation

_F = TypeVar("_F", bound=Callable[..., Any])

_LEAST_BYTES: Final = 1 << 20
"""A part begins with the state of the host, which takes a tenth of that."""

_LEAST_S: Final = 1.0


class RotationOptions(TypedDict):
    """The options that `rotation_options` declares."""

    split_size: int | None
    split_time: float | None
    keep: int | None


def rotation_options(function: _F) -> _F:
    """``--split-size``, ``--split-time``, ``--keep``."""
    for option in (
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


def chosen(options: RotationOptions, target: str | None) -> Rotation | None:
    """When a recording is to go on in another file.

    Args:
        options: The verb's options.
        target: The output that the user named.

    Returns:
        None where it is to stay in one.

    Raises:
        click.UsageError: The options make no sense.
    """
    from kcap.tools.recorded import Rotation

    size, every_s, keep = options["split_size"], options["split_time"], options["keep"]
    if size is None and every_s is None and keep is None:
        return None
    if target == "-":
        raise click.UsageError("standard output can't be split: give -o FILE, or use 'kcap split'")
    if size is not None and size < _LEAST_BYTES:
        raise click.UsageError("--split-size: give 1M or more, each file begins with the host")
    if every_s is not None and every_s < _LEAST_S:
        raise click.UsageError("--split-time: give 1s or more")
    return Rotation(size, every_s, keep)


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
