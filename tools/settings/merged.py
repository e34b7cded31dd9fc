"""Settings of a file, the environment and the command line as one, and where each comes from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import click

from kcap.documents import Node
from kcap.errors import KcapError
from kcap.filament.limits import Limits
from kcap.tools import common
from kcap.tools.settings import outputs, places, schema, secrets, verbs
from kcap.tools.settings.document import Reference
from kcap.tools.settings.model import (
    FORMATS,
    LEVELS,
    FilamentSettings,
    LoggingSettings,
    Settings,
    SinkSpec,
    TransformerSpec,
)
from kcap.tools.settings.schema import Key, Mistakes, Raw, Shape, keys_in, variable

FILAMENT: Final = "filament"
LOGGING: Final = "logging"
SINKS: Final = "sinks"
TRANSFORMERS: Final = "transformers"
OWN: Final = (SINKS, TRANSFORMERS, FILAMENT, LOGGING)
"""The sections that are no verb's."""

_SINKS_VARIABLE: Final = "KCAP_SINKS"
OTHER_VARIABLES: Final = (places.VARIABLE, _SINKS_VARIABLE, "KCAP_BTF")
"""Variables that are no option's."""

_ALIKE: Final = 0.8
"""Names of variables begin alike, all of them."""

_KEEP_MAX: Final = 1000
"""The most log files that are kept."""


def logging_keys() -> dict[str, Key]:
    """What the section ``logging`` may say.

    Returns:
        Name to key.
    """
    usual = LoggingSettings()
    rows: tuple[tuple[str, str, click.ParamType[Any], str], ...] = (
        ("file", "file", click.STRING, "Where what kcap says and does is written, too."),
        ("level", "level", click.Choice(LEVELS), "What is worth it, and all that is worse."),
        ("format", "format", click.Choice(FORMATS), "Lines for people, or JSON."),
        ("max-size", "max_bytes", common.Size(), "Go on in another file at this size."),
        ("keep", "keep", click.IntRange(0, _KEEP_MAX), "How many full files to keep."),
    )
    return {
        name: Key(name, field, kind, help=text, default=getattr(usual, field))
        for name, field, kind, text in rows
    }


def filament_keys() -> dict[str, Key]:
    """What the section ``filament`` may say.

    Returns:
        Name to key: the folders, and every limit.
    """
    text = "Folders with filaments; kcap's own come after them."
    path = Key("path", "path", click.Path(), Shape.MANY, help=text, default=[])
    return {"path": path, **schema.keys_of(Limits)}


@dataclass(frozen=True, slots=True)
class Entry:
    """A setting, and where it comes from."""

    key: Key
    value: Raw
    source: str


class Merged:
    """What a file and the environment say.

    Args:
        file: The file; None for none.
        found: Nobody named it.
        environ: The environment.
        flags: What the command line says of the log: section ``logging``.
    """

    def __init__(
        self,
        file: str | None,
        *,
        found: bool = False,
        environ: Mapping[str, str] = os.environ,
        flags: Mapping[str, str] | None = None,
    ) -> None:
        self.file = file
        self._found = found
        self._environ = environ
        self._flags = flags or {}
        self.known = secrets.Known()
        self._gathered: Mistakes | None = None

    @cached_property
    def sections(self) -> dict[str, Node]:
        """The sections of the file.

        Raises:
            KcapError: It can't be read, or has sections that nobody knows.
        """
        if self.file is None:
            return {}
        value = places.read(self.file).value
        assert isinstance(value, dict)
        known = (*verbs.sections(), *OWN)
        with self._mistakes() as mistakes:
            for name, node in value.items():
                if name not in known:
                    mistakes.add(node, f"{name!r} is no section{_section_meant(name, known)}")
        return {name: node for name, node in value.items() if name in known}

    @contextlib.contextmanager
    def gathering(self) -> Iterator[None]:
        """Look at several sections before what is wrong with them is told.

        Yields:
            Nothing: within it no mistake in the file is an error, at its end all of them are.

        Raises:
            BadInputError: There were some.
        """
        self._gathered = mistakes = Mistakes(self.file or "")
        try:
            yield
        finally:
            self._gathered = None
        mistakes.raise_any()

    def entries(
        self, path: tuple[str, ...], command: click.Command, *, typed: bool = False
    ) -> dict[str, Entry]:
        """What is set of a verb's options.

        Args:
            path: The way to it.
            command: The verb.
            typed: Whether values fit their types is looked at, too; click does when it takes them.

        Returns:
            Long name to entry.

        Raises:
            KcapError: The file has an option that the verb has not, or another shape of value.
        """
        keys = verbs.keys(command)
        made: dict[str, Entry] = {}
        with self._mistakes() as mistakes:
            node = self._section(path, mistakes)
            if node is not None:
                node = _without(node, set(_verbs_of(command)))
                made = self._of_file(node, keys, " ".join(path), mistakes, typed=typed)
        return made | self._of_variables(path, keys)

    def own(self, section: str) -> dict[str, Entry]:
        """What is set in the section ``filament`` or ``logging``.

        Args:
            section: Its name.

        Returns:
            Name to entry.

        Raises:
            KcapError: It has what it may not have.
        """
        keys = filament_keys() if section == FILAMENT else logging_keys()
        made: dict[str, Entry] = {}
        if section in self.sections:
            with self._mistakes() as mistakes:
                made = self._of_file(self.sections[section], keys, section, mistakes, typed=True)
        made |= self._of_variables((section,), keys)
        if section == LOGGING:
            for name, value in self._flags.items():
                made[name] = Entry(keys[name], value, f"--log-{name}")
        return made

    def sinks(self, *, resolve: bool = True) -> list[tuple[str, Raw, dict[str, Entry]]]:
        """The sinks that are set.

        Args:
            resolve: Values that are elsewhere must be there.

        Returns:
            Source, URL and options of each.

        Raises:
            KcapError: They are wrong.
        """
        if text := self._environ.get(_SINKS_VARIABLE):
            return [(_SINKS_VARIABLE, url, {}) for url in text.split()]
        if SINKS not in self.sections:
            return []
        node = self.sections[SINKS]
        with self._mistakes() as mistakes:
            found = [*outputs.sinks(node, mistakes, self.resolve if resolve else None)]
        return [
            (
                self._source(item),
                url,
                {n: Entry(o.key, o.value, self._source(o.node)) for n, o in options.items()},
            )
            for item, url, options in found
        ]

    def transformers(self) -> list[TransformerSpec]:
        """The transformers that are set; references stay in their arguments.

        Raises:
            KcapError: They are wrong.
        """
        if TRANSFORMERS not in self.sections:
            return []
        with self._mistakes() as mistakes:
            found = [*outputs.transformers(self.sections[TRANSFORMERS], mistakes)]
        return [TransformerSpec(name, value, self._source(item)) for item, name, value in found]

    @cached_property
    def settings(self) -> Settings:
        """What a run asks for.

        Raises:
            KcapError: Something is wrong, or a value that is elsewhere is not there.
        """
        sinks = tuple(self._sink(*found) for found in self.sinks())
        transformers = tuple(
            TransformerSpec(one.name, self._resolved(one.arguments), one.source)
            for one in self.transformers()
        )
        values = self.values(FILAMENT)
        path = values.pop("path", ())
        return Settings(
            sinks, transformers, FilamentSettings(path, Limits(**values)), self.logging, self.known
        )

    @cached_property
    def logging(self) -> LoggingSettings:
        """What is to be logged.

        Raises:
            KcapError: The section is wrong.
        """
        entries = self.own(LOGGING)
        named = "file" in entries and entries["file"].source.startswith(("KCAP_", "--"))
        return LoggingSettings(**self.values(LOGGING), found=self._found and not named)

    def values(self, section: str) -> dict[str, Any]:
        """The values of a section of our own, by field.

        Args:
            section: Its name.

        Returns:
            Field to value, of those that are set.

        Raises:
            KcapError: One does not fit, or is not where it should be.
        """
        return {e.key.field: self.value(e) for e in self.own(section).values()}

    def value(self, entry: Entry) -> Any:  # noqa: ANN401
        """The value of a setting.

        Args:
            entry: The setting.

        Returns:
            Its value, of its type.

        Raises:
            KcapError: It does not fit, or is not where it should be.
        """
        try:
            return schema.converted(entry.key, self._resolved(entry.value))
        except ValueError as error:
            raise KcapError(f"{entry.source}: {entry.key.name!r}: {error}") from error

    def text(self, entry: Entry) -> Any:  # noqa: ANN401
        """The value of a verb's option as click takes it.

        Args:
            entry: The setting.

        Returns:
            Text, or a list of such; a flag's True or False.

        Raises:
            KcapError: It does not fit, or is not where it should be.
        """
        if entry.key.type is click.BOOL:
            return self.value(entry)
        return self._resolved(entry.value)

    def resolve(self, found: Reference) -> str:
        """What a reference stands for; from now on that is a secret.

        Args:
            found: The reference.

        Returns:
            The value.

        Raises:
            KcapError: There is none.
        """
        value = secrets.resolve(found, self._environ)
        self.known.add(value)
        return value

    def variables(self) -> list[str]:
        """The variables of the environment that may be settings.

        Returns:
            Their names.
        """
        return sorted(name for name, value in self._environ.items() if value and _is_ours(name))

    def unknown_variables(self, path: tuple[str, ...], keys: Mapping[str, Key]) -> Iterator[str]:
        """Variables that look like settings, and are none.

        Args:
            path: The verb that is called: of others only the name is looked at.
            keys: Its options.

        Yields:
            What is to be said of each.
        """
        own = {variable(verbs.PREFIX, *path, name) for name in keys}
        own |= {variable(verbs.PREFIX, FILAMENT, name) for name in filament_keys()}
        own |= {variable(verbs.PREFIX, LOGGING, name) for name in logging_keys()}
        known = {*own, *OTHER_VARIABLES}
        mine = variable(verbs.PREFIX, *path) + "_"
        others = tuple(
            f"{variable(verbs.PREFIX, name)}_" for name in verbs.sections() if name != path[0]
        )
        for name in self.variables():
            of_another = not name.startswith(mine) and name.startswith(others)
            if name not in known and not of_another:
                yield f"the variable {name} sets nothing{schema.meant(name, known, _ALIKE)}"

    @contextlib.contextmanager
    def _mistakes(self) -> Iterator[Mistakes]:
        """What is wrong with the file: told at the end of this, or of `gathering`."""
        if self._gathered is not None:
            yield self._gathered
            return
        mistakes = Mistakes(self.file or "")
        yield mistakes
        mistakes.raise_any()

    def _section(self, path: tuple[str, ...], mistakes: Mistakes) -> Node | None:
        """The part of the file for a verb."""
        node = self.sections.get(path[0])
        for name in path[1:]:
            if node is None or not isinstance(node.value, dict):
                break
            node = node.value.get(name)
        if node is not None and node.value is not None and not isinstance(node.value, dict):
            mistakes.add(node, f"{' '.join(path)!r} is a section: expected options with values")
            return None
        return node

    def _of_file(
        self,
        node: Node,
        keys: Mapping[str, Key],
        what: str,
        mistakes: Mistakes,
        *,
        typed: bool = False,
    ) -> dict[str, Entry]:
        """The entries of a section."""
        made = {}
        for name, (key, inner) in keys_in(node, keys, what, mistakes).items():
            if typed:
                value = outputs.checked(key, inner, mistakes)
            else:
                value = _shaped(key, inner, mistakes)
            if value is not None:
                made[name] = Entry(key, value, self._source(inner))
        return made

    def _of_variables(self, path: tuple[str, ...], keys: Mapping[str, Key]) -> dict[str, Entry]:
        """The entries of the environment; an empty variable is none."""
        made = {}
        for name, key in keys.items():
            source = variable(verbs.PREFIX, *path, name)
            if text := self._environ.get(source):
                try:
                    made[name] = Entry(key, schema.of_variable(text, key), source)
                except ValueError as error:
                    raise KcapError(f"the variable {source}: {error}") from error
        return made

    def _sink(self, source: str, url: Raw, options: dict[str, Entry]) -> SinkSpec:
        """A sink with its secrets, which are known from now on."""
        address = self._resolved(url)
        keys = outputs.sink_keys(address)
        secret = tuple(name for name, key in keys.items() if key.secret)
        self.known.add_url(address, secret=secret)
        made = {}
        for name, entry in options.items():
            made[name] = self._resolved(entry.value)
            for text in secrets.telling(name, made[name], secret):
                self.known.add(text)
        return SinkSpec(address, made, source, secret)

    def _resolved(self, value: Any) -> Any:  # noqa: ANN401
        return schema.resolved(value, self.resolve)

    def _source(self, node: Node) -> str:
        return f"{self.file} {node.place}"


def _is_ours(name: str) -> bool:
    return name.startswith(places.PREFIX) and not name.startswith(places.OF_TESTS)


def _shaped(key: Key, node: Node, mistakes: Mistakes) -> Raw | None:
    """A value in the shape of its key."""
    try:
        return schema.raw(node, key.shape)
    except ValueError as error:
        mistakes.add(node, f"{key.name!r}: {error}")
        return None


def _verbs_of(command: click.Command) -> list[str]:
    return command.list_commands(click.Context(command)) if isinstance(command, click.Group) else []


def _without(node: Node, names: set[str]) -> Node:
    """A section without the sections in it."""
    assert node.value is None or isinstance(node.value, dict)
    kept = {name: inner for name, inner in (node.value or {}).items() if name not in names}
    return Node(kept, node.line, near=node.near)


def _section_meant(name: str, known: tuple[str, ...]) -> str:
    """What was meant by the name of a section: also the other name of a verb."""
    path = verbs.section_of(name) if verbs.is_verb(name) else None
    if path is not None:
        return f"; its options stand in {':'.join(path)!r}"
    if verbs.is_verb(name):
        return "; this verb takes no settings"
    return schema.meant(name, known)
