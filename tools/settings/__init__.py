"""Settings: a file, the environment and the command line, merged.

A verb's options are settings of the section that is called like the verb; what belongs to no verb
(sinks, transformers, filaments, the log) has sections of its own. The command line wins over the
environment, that over the file, and the file over what is built in.

Nothing of this is loaded or read before a verb asks for it: ``kcap --help`` does not.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from kcap.errors import KcapError

if TYPE_CHECKING:
    from kcap.tools.settings.merged import Entry, Merged
    from kcap.tools.settings.model import Settings

_META: Final = "kcap.settings"
_NAMED: Final = "kcap.settings.named"
_FLAGS: Final = "kcap.settings.flags"


def of(ctx: click.Context) -> Settings:
    """The settings of this run that are no verb's options.

    Args:
        ctx: The verb's context.

    Returns:
        Sinks, transformers, what filaments may do, and the log.

    Raises:
        KcapError: They are wrong; every mistake of the section is named, with its line.
    """
    return found(ctx).settings


def found(ctx: click.Context) -> Merged:
    """What file and environment say.

    Args:
        ctx: Any context of this run.

    Returns:
        The same for all of them.

    Raises:
        KcapError: There are two files, none of them named.
    """
    from kcap.tools.settings import places
    from kcap.tools.settings.merged import Merged

    meta = ctx.find_root().meta
    if _META not in meta:
        named = meta.get(_NAMED)
        unnamed = named is None and places.VARIABLE not in os.environ
        file = places.chosen(named, os.environ)
        meta[_META] = Merged(file, found=unnamed, flags=meta.get(_FLAGS))
    made: Merged = meta[_META]
    return made


def words(ctx: click.Context) -> tuple[str, ...]:
    """What another kcap has to be told, so that it has the same settings.

    Args:
        ctx: Any context of this run.

    Returns:
        ``--config`` and the file where somebody named one; nothing where it will be found.
    """
    named = ctx.find_root().meta.get(_NAMED)
    named = os.environ.get("KCAP_CONFIG") if named is None else named
    if named is None:
        return ()
    return ("--config", os.path.normpath(Path(named).absolute()) if named else "")


def name(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    """Take note of ``--config``.

    Args:
        ctx: The group's context.
        value: The file; empty for none.
    """
    ctx.find_root().meta[_NAMED] = value


def flag(ctx: click.Context, option: click.Parameter, value: str | None) -> None:
    """Take note of ``--log-file`` or ``--log-level``.

    Args:
        ctx: The group's context.
        option: Which.
        value: What it says.
    """
    if value is not None:
        word = option.name.removeprefix("log_")
        ctx.find_root().meta.setdefault(_FLAGS, {})[word] = value


def defaults(
    command: click.Command, name: str | None, parent: click.Context | None
) -> Defaults | None:
    """What settings say of a verb that is called.

    Args:
        command: The verb.
        name: What it was called by.
        parent: The context that it is called in.

    Returns:
        Its options; None where it takes none from settings, there are none, or the verb is not
        called but looked at.
    """
    if parent is None or name is None or parent.resilient_parsing:
        return None
    if parent.parent is not None:
        outer = parent.default_map
        return outer.of(name, command) if isinstance(outer, Defaults) else None
    from kcap.tools.settings import places

    if parent.meta.get(_NAMED) is None and _FLAGS not in parent.meta and places.silent(os.environ):
        return None
    from kcap.tools.settings import verbs

    path = verbs.section_of(name) if verbs.is_verb(name) else None
    return None if path is None else Defaults(parent, path, command)


class Defaults(dict[str, Any]):
    """What settings say of a verb's options, read when the first is asked for: not by ``--help``.

    Args:
        ctx: The context that the verb is called in.
        path: The verb's section.
        command: The verb.
    """

    def __init__(self, ctx: click.Context, path: tuple[str, ...], command: click.Command) -> None:
        super().__init__()
        self._ctx = ctx
        self._path = path
        self._command = command
        self._entries: dict[str, Entry] | None = None

    def of(self, inner: str, command: click.Command) -> Defaults:
        """Those of a verb of this verb.

        Args:
            inner: Its name.
            command: The verb.

        Returns:
            The same for it.
        """
        return Defaults(self._ctx, (*self._path, inner), command)

    def blamed(self, error: click.BadParameter) -> Exception:
        """What is wrong with an option, said of where it stands.

        Args:
            error: The error, which speaks of the command line.

        Returns:
            An error that names file and line, or the variable; the same where the value is neither
            from a file nor from a variable.
        """
        option, ctx = error.param, error.ctx
        if option is None or ctx is None:
            return error
        entry = self._read().get(option.name)
        source = ctx.get_parameter_source(option.name)
        if entry is None or source is not click.core.ParameterSource.DEFAULT_MAP:
            return error
        return KcapError(f"{entry.source}: {entry.key.name!r}: {error.message.rstrip('.')}")

    def __contains__(self, field: object) -> bool:
        return field in self._read()

    def __getitem__(self, field: str) -> Any:  # noqa: ANN401
        return found(self._ctx).text(self._read()[field])

    def get(self, field: str, default: Any = None) -> Any:  # noqa: ANN401
        """What is said of an option."""
        return self[field] if field in self else default  # noqa: SIM401  (it is this)

    def _read(self) -> dict[str, Entry]:
        """The entries by field; says which variables set nothing."""
        if self._entries is None:
            from kcap.tools import logs
            from kcap.tools.settings import verbs

            merged = found(self._ctx)
            entries = merged.entries(self._path, self._command)
            self._entries = {entry.key.field: entry for entry in entries.values()}
            for warning in merged.unknown_variables(self._path, verbs.keys(self._command)):
                logs.tell(f"kcap: warning: {warning}", level="warning")
        return self._entries
