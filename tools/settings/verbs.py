"""The options of verbs as settings: what click knows of them, by the names that users write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import click

from kcap.tools import cli
from kcap.tools.settings.schema import Key, Shape, variable

PREFIX: Final = "KCAP"
"""The first word of the names of all variables."""


def sections() -> tuple[str, ...]:
    """The verbs that settings have a section for.

    Returns:
        Their names, in the order of the help; not those that only tell about kcap itself.
    """
    return tuple(name for name, verb in cli.verbs().items() if not verb.hidden and verb.settings)


def section_of(name: str) -> tuple[str, ...] | None:
    """The section that a verb takes its options from.

    Args:
        name: The verb as it was called, maybe by another name.

    Returns:
        The way to it: ``("record",)`` of ``capture`` too; None of a verb that takes none.
    """
    verb = cli.verbs()[name]
    if not verb.settings:
        return None
    if verb.hidden:
        name = next(
            other
            for other, shown in cli.verbs().items()
            if not shown.hidden and shown.module == verb.module
        )
    return (name, *verb.command)


def command_at(path: tuple[str, ...]) -> click.Command:
    """A verb, imported.

    Args:
        path: The way to it, as `section_of` has it.

    Returns:
        The command.
    """
    root = click.Context(cli.main)
    found: click.Command = cli.main
    for name in path:
        assert isinstance(found, click.Group), path
        inner = found.get_command(root, name)
        assert inner is not None, path
        found = inner
    return found


def commands(path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A verb and the verbs that it has itself.

    Args:
        path: The way to it.

    Yields:
        The way to each, and the command.
    """
    command = command_at(path)
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands((*path, name))


def keys(command: click.Command) -> dict[str, Key]:
    """What settings may say of a verb's options.

    Args:
        command: The verb.

    Returns:
        Long name to key, by the order of the help. Options that print something and end, as
        ``--help`` does, are none.
    """
    made = {}
    for option in command.params:
        if not isinstance(option, click.Option) or (option.is_eager and option.is_flag):
            continue
        long = next((name for name in option.opts if name.startswith("--")), None)
        if long is None:
            continue
        name = long[2:]
        made[name] = Key(
            name,
            option.name,
            click.BOOL if option.is_flag and option.is_bool_flag else option.type,
            Shape.MANY if option.multiple or option.nargs != 1 else Shape.ONE,
            help=option.help or "",
            default=_default(option),
        )
    return made


def _default(option: click.Option) -> Any:  # noqa: ANN401
    """What holds where nothing is said; None for nothing."""
    if option.is_flag and option.is_bool_flag:
        return bool(option.default) if isinstance(option.default, bool) else False
    default = option.to_info_dict()["default"]
    return list(default) if isinstance(default, (list, tuple)) else default


def is_verb(name: str) -> bool:
    """Whether there is a verb of that name.

    Args:
        name: The name.

    Returns:
        True for other names of verbs, too.
    """
    return name in cli.verbs()


def variable_of(name: str) -> str:
    """What the variables of a verb's options begin with.

    Args:
        name: The verb.

    Returns:
        ``KCAP_RECORD_``.
    """
    return f"{variable(PREFIX, name)}_"
