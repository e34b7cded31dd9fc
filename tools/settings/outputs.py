"""Sinks and transformers in settings, each checked by what it is called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import click

from kcap.documents import Node
from kcap.errors import KcapError
from kcap.tools.settings import schema
from kcap.tools.settings.document import Reference, reference
from kcap.tools.settings.schema import Key, Mistakes, Raw, Resolve, has_reference


class Option(NamedTuple):
    """A setting of a sink."""

    key: Key
    value: Raw
    node: Node
    """Where it stands."""


_URL: Final = "url"
_FILE: Final = "-file"
"""The end of the name of an option that says which file has a secret."""
_KEY_FILE: Final = "key-file"
_PROBE: Final = bytes(32)
"""A key to look at arguments with; it changes nothing."""


def sink_keys(url: str) -> dict[str, Key]:
    """The options that a sink may have.

    Args:
        url: The sink.

    Returns:
        Name to key.

    Raises:
        KcapError: There is no such sink, or its transport can't be loaded.
    """
    from kcap.writers.sinks import spec

    found = spec.parse(url)
    made: dict[str, Key] = {}
    for cls in (type(found.delivery), type(found.options)):
        for name, key in schema.keys_of(cls).items():
            made[name] = key
            if key.secret:
                file = f"{name}{_FILE}"
                made[file] = Key(file, f"{key.field}_file", click.STRING, help="a file with it")
    made.pop(_URL, None)
    return made


def sinks(
    node: Node, mistakes: Mistakes, resolve: Resolve | None
) -> Iterator[tuple[Node, Raw, dict[str, Option]]]:
    """The sinks that a list in a file names.

    Args:
        node: The list.
        mistakes: Gets what is wrong with it.
        resolve: Finds the values that references stand for; None where they needn't be there.

    Yields:
        Where each stands, its URL, and its options as they are written.
    """
    if not isinstance(node.value, tuple):
        if node.value is not None:
            mistakes.add(node, "'sinks' is a list: expected '- URL', or '- url: URL' with options")
        return
    for item in node.value:
        url = reference(item)
        if url is not None or isinstance(item.value, str):
            found: Raw = item.text if url is None else url
            if _keys(item, found, mistakes, resolve) is not None:
                yield item, found, {}
        elif isinstance(item.value, dict) and _URL in item.value:
            if (made := _sink(item, mistakes, resolve)) is not None:
                yield item, *made
        else:
            mistakes.add(item, "this is no sink: expected a URL, or 'url: URL' with options")


def transformers(node: Node, mistakes: Mistakes) -> Iterator[tuple[Node, str, Any]]:
    """The transformers that a list in a file names.

    Args:
        node: The list.
        mistakes: Gets what is wrong with it.

    Yields:
        Where each stands, its name, and its arguments, in which references stay.
    """
    if not isinstance(node.value, tuple):
        if node.value is not None:
            mistakes.add(node, "'transformers' is a list: expected '- NAME: ARGUMENTS'")
        return
    from kcap import transform

    for item in node.value:
        if not isinstance(item.value, dict) or len(item.value) != 1:
            mistakes.add(item, "this is no transformer: expected one NAME: ARGUMENTS")
            continue
        ((name, arguments),) = item.value.items()
        if name not in transform.NAMES:
            expected = schema.meant(name, transform.NAMES) or (
                f": expected {', '.join(transform.NAMES)}"
            )
            mistakes.add(arguments, f"{name!r} is no transformer{expected}")
            continue
        try:
            transform.parse(name, _probed(arguments.plain()), key=_PROBE, environ=_Anything(_=""))
        except KcapError as error:
            expected = f": expected {error.expected}" if error.expected else ""
            mistakes.add(arguments, f"{error.what}{expected}")
            continue
        yield item, name, arguments.plain()


class _Anything(dict[str, str]):
    """An environment that has every variable: whether it does is not the file's mistake."""

    def __missing__(self, name: str) -> str:
        return name

    def __contains__(self, name: object) -> bool:
        return True

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        """The variable."""
        return self[name]


def _probed(arguments: Any) -> Any:  # noqa: ANN401
    """Arguments that can be looked at without the files and variables that they name."""
    if isinstance(arguments, Reference):
        return arguments.name
    if isinstance(arguments, list):
        return [_probed(item) for item in arguments]
    if isinstance(arguments, dict):
        return {name: _probed(item) for name, item in arguments.items() if name != _KEY_FILE}
    return arguments


def _sink(
    item: Node, mistakes: Mistakes, resolve: Resolve | None
) -> tuple[Raw, dict[str, Option]] | None:
    """A sink with options: its URL, and what its transport can be told."""
    assert isinstance(item.value, dict)
    try:
        url = schema.raw(item.value[_URL], schema.Shape.ONE)
    except ValueError as error:
        mistakes.add(item.value[_URL], f"{_URL!r}: {error}")
        return None
    keys = _keys(item.value[_URL], url, mistakes, resolve)
    if keys is None:
        return None
    others = {name: inner for name, inner in item.value.items() if name != _URL}
    made = {}
    if keys:
        found = schema.keys_in(Node(others, item.line), keys, _shown(url), mistakes)
        for name, (key, inner) in found.items():
            if (value := _option(url, key, inner, mistakes)) is not None:
                made[name] = Option(key, value, inner)
    return url, made


def _option(url: Raw, key: Key, node: Node, mistakes: Mistakes) -> Raw | None:
    """The value of an option, if the sink takes it."""
    from kcap.writers.sinks import spec

    try:
        value = schema.raw(node, key.shape)
        if isinstance(url, str) and not key.name.endswith(_FILE) and not has_reference(value):
            spec.parse(url, {key.name: value})
    except ValueError as error:
        mistakes.add(node, f"{key.name!r}: {error}")
    except KcapError as error:
        expected = f": expected {error.expected}" if error.expected else ""
        mistakes.add(node, f"{error.what}{expected}")
    else:
        return value
    return None


def checked(key: Key, node: Node, mistakes: Mistakes) -> Raw | None:
    """A value, if it fits.

    Args:
        key: What it is for.
        node: The value.
        mistakes: Gets what is wrong with it.

    Returns:
        The value as it is written; None where it does not fit.
    """
    try:
        value = schema.raw(node, key.shape)
        schema.converted(key, value)
    except ValueError as error:
        mistakes.add(node, f"{key.name!r}: {error}")
        return None
    return value


def _keys(
    node: Node, url: Raw, mistakes: Mistakes, resolve: Resolve | None
) -> dict[str, Key] | None:
    """What a sink can be told; of one whose URL is not known here, that is not known either."""
    if not isinstance(url, str):
        if resolve is None:
            return {}
        url = schema.resolved(url, resolve)
    try:
        return sink_keys(str(url))
    except KcapError as error:
        mistakes.add(node, f"{error.what}{f'; {error.hint}' if error.hint else ''}")
    return None


def _shown(url: Raw) -> str:
    """What a sink is called in messages."""
    return url.partition(":")[0] if isinstance(url, str) else "sink"
