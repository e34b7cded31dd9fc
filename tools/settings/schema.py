"""What may stand in settings: keys with click's own types, and all that is wrong with a file."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TypeAlias

import click

from kcap.documents import Node
from kcap.errors import BadInputError, KcapError
from kcap.tools.settings.document import Reference, reference

SHOWN_MAX: Final = 20
"""How many mistakes of a file are told at once."""

_TEXT_CHARS: Final = 60

Raw: TypeAlias = "str | Reference | list[Raw] | dict[str, Raw]"
"""A value as text, before its type is known to fit."""

Resolve: TypeAlias = Callable[[Reference], str]


class Shape(Enum):
    """How many values a key takes."""

    ONE = "one value"
    MANY = "a list"
    MAP = "names with values"


@dataclass(frozen=True, slots=True)
class Key:
    """A setting."""

    name: str
    """As it is written."""
    field: str
    """As Python has it."""
    type: click.ParamType[Any]
    shape: Shape = Shape.ONE
    help: str = ""
    default: Any = None
    secret: bool = False

    @property
    def variable(self) -> str:
        """The end of its environment variable's name."""
        return variable(self.name)


class Mistakes:
    """What is wrong with a file, to be told at once.

    Args:
        file: Its name.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._found: list[tuple[int, str]] = []

    def add(self, node: Node, what: str) -> None:
        """Take note of a mistake.

        Args:
            node: Where it is.
            what: What it is.
        """
        self._found.append((node.line, f"{node.place}: {what}"))

    def raise_any(self) -> None:
        """Tell them.

        Raises:
            BadInputError: There are some; further ones are its notes.
        """
        if not self._found:
            return
        found = [what for _, what in sorted(self._found, key=lambda one: one[0])]
        error = BadInputError(found[0], file=self._file)
        for what in found[1:SHOWN_MAX]:
            error.add_note(f"kcap: {self._file}: {what}")
        if len(found) > SHOWN_MAX:
            error.add_note(f"kcap: {self._file}: and {len(found) - SHOWN_MAX} more")
        raise error


def variable(*words: str) -> str:
    """Words as the name of a variable.

    Args:
        words: ``record``, ``max-size``.

    Returns:
        ``RECORD_MAX_SIZE``.
    """
    return re.sub(r"[^A-Z0-9]", "_", "_".join(words).upper())


def meant(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """What was probably meant by a word that is not known.

    Args:
        word: The word.
        known: Those that are.
        likeness: From 0 to 1, how much alike two must be.

    Returns:
        ``; did you mean 'record'?``, or nothing.
    """
    near = difflib.get_close_matches(word, list(known), 1, likeness)
    return f"; did you mean {near[0]!r}?" if near else ""


def keys_in(
    node: Node, keys: Mapping[str, Key], what: str, mistakes: Mistakes
) -> dict[str, tuple[Key, Node]]:
    """What a section sets.

    Args:
        node: The section.
        keys: What it may set.
        what: What it is, for messages: ``record``.
        mistakes: Gets those that it may not.

    Returns:
        Name to key and node, in the order of the file.
    """
    if node.value is None:
        return {}
    if not isinstance(node.value, dict):
        mistakes.add(node, f"{what!r} is a section: expected options with values")
        return {}
    found = {}
    for name, inner in node.value.items():
        key = keys.get(name)
        if key is None:
            mistakes.add(inner, f"{name!r} is no option of {what!r}{meant(name, keys)}")
        else:
            found[name] = (key, inner)
    return found


def raw(node: Node, shape: Shape) -> Raw:
    """What stands in the file for a key, in its shape.

    Args:
        node: The value.
        shape: How many are expected.

    Returns:
        Text, or a list or names with such.

    Raises:
        ValueError: It has another shape; says which is expected.
    """
    if (found := reference(node)) is not None:
        return found
    value = node.value
    if shape is Shape.MAP:
        if not isinstance(value, dict):
            raise ValueError(f"expected {shape.value}, as NAME: VALUE")
        return {name: raw(inner, Shape.ONE) for name, inner in value.items()}
    if shape is Shape.MANY and isinstance(value, tuple):
        return [raw(item, Shape.ONE) for item in value]
    if value is None:
        raise ValueError("expected a value")
    if not node.is_scalar:
        raise ValueError(f"expected {Shape.ONE.value}")
    return [node.text] if shape is Shape.MANY else node.text


def of_variable(text: str, key: Key) -> Raw:
    """What an environment variable says, in the shape of its key.

    Args:
        text: Its value.
        key: The key.

    Returns:
        Text, or a list of what blanks divide (paths: what divides PATH).

    Raises:
        ValueError: It has another shape.
    """
    if key.shape is Shape.ONE:
        return text
    words = [*key.type.split_envvar_value(text)]
    if key.shape is Shape.MANY:
        return [*words]
    pairs = [word.partition("=") for word in words]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError("expected NAME=VALUE, divided by blanks")
    return {name: value for name, _, value in pairs}


def has_reference(value: Raw) -> bool:
    """Whether a value, or one in it, is to be found elsewhere.

    Args:
        value: The value.

    Returns:
        True where it is.
    """
    if isinstance(value, dict):
        return any(map(has_reference, value.values()))
    if isinstance(value, list):
        return any(map(has_reference, value))
    return isinstance(value, Reference)


def resolved(value: Raw, resolve: Resolve) -> Any:  # noqa: ANN401
    """A value whose references are replaced by what they stand for.

    Args:
        value: The value.
        resolve: Finds it.

    Returns:
        Text, or a list or names with text.

    Raises:
        KcapError: It is not there.
    """
    if isinstance(value, Reference):
        return resolve(value)
    if isinstance(value, list):
        return [resolved(item, resolve) for item in value]
    if isinstance(value, dict):
        return {name: resolved(item, resolve) for name, item in value.items()}
    return value


def converted(key: Key, value: Any) -> Any:  # noqa: ANN401
    """A value of the type of its key.

    Args:
        key: The key.
        value: As `raw` has it; what refers to a value that is not here is left out.

    Returns:
        The value; a tuple of a list.

    Raises:
        ValueError: It does not fit; says why.
    """
    if isinstance(value, Reference):
        return value
    if isinstance(value, list):
        if key.shape is Shape.ONE:
            raise ValueError(f"expected {Shape.ONE.value}")
        return tuple(converted(key, item) for item in value)
    if isinstance(value, dict):
        return {name: converted(key, item) for name, item in value.items()}
    if not isinstance(value, str):
        raise ValueError(f"expected {key.shape.value}")  # noqa: TRY004  (of a file, not a call)
    try:
        return key.type.convert(value, None, None)
    except click.ClickException as error:
        raise ValueError(error.message.rstrip(".")) from error
    except KcapError as error:
        raise ValueError(error.what) from error


def keys_of(cls: type) -> dict[str, Key]:
    """The keys that set the fields of a dataclass.

    Args:
        cls: A dataclass; metadata of a field may have ``help`` and ``secret``, and the end of its
            name says what its number counts: ``_bytes``, ``_s``.

    Returns:
        Name to key, in the order of the fields.
    """
    hints = typing.get_type_hints(cls)
    made = {}
    for one in dataclasses.fields(cls):
        name = one.name.replace("_", "-")
        kind, shape = _type(one.name, hints[one.name])
        default = one.default
        if one.default_factory is not dataclasses.MISSING:
            default = one.default_factory()
        made[name] = Key(
            name,
            one.name,
            kind,
            shape,
            help=one.metadata.get("help", ""),
            default=None if default is dataclasses.MISSING else default,
            secret=bool(one.metadata.get("secret", False)),
        )
    return made


def short(text: str) -> str:
    """Text for a message, not too long.

    Args:
        text: Any text.

    Returns:
        Its beginning.
    """
    return text if len(text) <= _TEXT_CHARS else f"{text[:_TEXT_CHARS]}…"


def _type(name: str, hint: Any) -> tuple[click.ParamType[Any], Shape]:  # noqa: ANN401
    """The type and shape of a field's values."""
    from kcap.tools import common

    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (hint,) = [inner for inner in arguments if inner is not types.NoneType]
        return _type(name, hint)
    if origin in (tuple, list):
        return _type(name, arguments[0])[0], Shape.MANY
    if origin in (dict, Mapping):
        return click.STRING, Shape.MAP
    if origin is typing.Literal:
        return click.Choice(arguments), Shape.ONE
    if hint is bool:
        return click.BOOL, Shape.ONE
    if hint is int:
        return (common.Size() if name.endswith("_bytes") else click.INT), Shape.ONE
    if hint is float:
        return (common.Duration() if name.endswith("_s") else click.FLOAT), Shape.ONE
    return click.STRING, Shape.ONE
