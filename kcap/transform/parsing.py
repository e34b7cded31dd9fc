"""From what a user wrote to transformers: a name and its arguments, or text of a command line."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from kcap.errors import KcapError
from kcap.transform import patterns, tokens
from kcap.transform.basic import Edit, Remove, Rename, Replacement, Tags, Trimming
from kcap.transform.names import Names
from kcap.transform.redact import Redact, Rules
from kcap.transform.tokens import Key

if TYPE_CHECKING:
    from kcap.replay.pipeline import Stage

_T = TypeVar("_T")
_ENABLED: Final = "enabled"
_PARAM: Final = ("param", "kparam", "column")
_VARIABLE: Final = re.compile(r"%([A-Za-z_][A-Za-z0-9_]*)%|%%")


class About(NamedTuple):
    """What is known of a transformer."""

    meaning: str
    example: str
    """As it stands in a configuration file."""
    short: str
    """As it stands on a command line."""


class _Context(NamedTuple):
    key: bytes | None
    environ: Mapping[str, str]


NAMES: Final = {
    "remove": About(
        "take parameters or columns away",
        "- remove: [irp, extended_info]",
        "remove=irp,extended_info",
    ),
    "rename": About(
        "give parameters other names",
        "- rename: {file_object: object}",
        "rename=file_object:object",
    ),
    "replace": About(
        "put a text in place of another one, wherever it stands in a parameter or column",
        "- replace: {param: key_name, old: HKEY_CURRENT_USER, new: HKCU}",
        "replace=key_name:HKEY_CURRENT_USER:HKCU",
    ),
    "trim": About(
        "take a text off the beginning or the end of a parameter or column",
        "- trim: {param: pathname, prefix: /mnt/root, suffix: .old}",
        "trim=pathname:/mnt/root:.old",
    ),
    "tags": About(
        "put texts on every event; %NAME% is the variable NAME of the environment",
        "- tags: {site: lab, host_name: '%HOSTNAME%'}",
        "tags=site:lab,host_name:%HOSTNAME%",
    ),
    "redact": About(
        "put tokens in place of secrets: the same for the same text, and for one key only",
        "- redact: {columns: [cmdline, user], patterns: [secrets], key-file: /etc/kcap/redact.key}",
        'redact={"columns": ["cmdline"], "key-file": "/etc/kcap/redact.key"}',
    ),
}
"""The transformers that there are."""


def parse(
    name: str,
    arguments: Any,  # noqa: ANN401  (what YAML or JSON gave)
    *,
    key: bytes | None = None,
    environ: Mapping[str, str] | None = None,
) -> Stage:
    """Make a transformer.

    Args:
        name: One of `NAMES`.
        arguments: Its arguments, as a configuration file has them; Fibratus's spellings will do.
        key: The key for ``redact``; None to read the file that its ``key-file`` names.
        environ: Variables for ``%NAME%`` in tags; they are read here and never later.

    Returns:
        The stage.

    Raises:
        KcapError: It can't be understood: what was expected, and what was probably meant.
    """
    maker = _MAKERS.get(name)
    if maker is None:
        raise _unknown(name, NAMES, "transformer", "")
    if isinstance(arguments, Mapping) and _ENABLED in arguments:
        enabled = arguments[_ENABLED]
        if not isinstance(enabled, bool):
            raise _wrong(name, f"enabled: {enabled!r}", "true or false")
        arguments = {k: v for k, v in arguments.items() if k != _ENABLED}
        if not enabled:
            return Edit([])
    return maker(arguments, _Context(key, environ or {}))


def parse_text(
    text: str, *, key: bytes | None = None, environ: Mapping[str, str] | None = None
) -> Stage:
    """Make a transformer from text of a command line.

    Args:
        text: ``NAME=ARGUMENTS``: JSON, or the short form that `NAMES` shows.
        key: As for `parse`.
        environ: As for `parse`.

    Returns:
        The stage.

    Raises:
        KcapError: It can't be understood.
    """
    name, equals, rest = text.partition("=")
    if not equals:
        expected = "NAME=ARGUMENTS, as " + (NAMES[name].short if name in NAMES else "remove=irp")
        raise KcapError(f"the transformer {text!r} has no arguments", expected=expected)
    if name not in NAMES:
        raise _unknown(name, NAMES, "transformer", "")
    return parse(name, _arguments(name, rest), key=key, environ=environ)


def _arguments(name: str, text: str) -> Any:  # noqa: ANN401
    if text.startswith(("{", "[")):
        try:
            return json.loads(text)
        except ValueError as e:
            raise _wrong(name, f"arguments that are no JSON: {e}", NAMES[name].short) from e
    if name == "replace":
        return _split(name, text, ("param", "old", "new"), 3)
    if name == "trim":
        return _split(name, text, ("param", "prefix", "suffix"), 2)
    items = text.split(",")
    if name in {"remove", "redact"}:
        return items if name == "remove" else {"columns": items}
    pairs = [item.partition(":") for item in items]
    for item, (_, colon, _) in zip(items, pairs, strict=True):
        if not colon:
            raise _wrong(name, repr(item), NAMES[name].short)
    return [
        {"old": a, "new": b} if name == "rename" else {"key": a, "value": b} for a, _, b in pairs
    ]


def _split(name: str, text: str, keys: Sequence[str], least: int) -> dict[str, str]:
    parts = text.split(":", len(keys) - 1)
    if len(parts) < least:
        raise _wrong(name, repr(text), NAMES[name].short)
    return dict(zip(keys, parts, strict=False))


def _remove(arguments: Any, _: _Context) -> Stage:  # noqa: ANN401
    if isinstance(arguments, Mapping):
        known = ("params", "kparams", "columns")
        _check_keys("remove", arguments, known)
        arguments = [n for k in known for n in _texts("remove", arguments.get(k, ()))]
    return Remove(_some("remove", _texts("remove", arguments)))


def _rename(arguments: Any, _: _Context) -> Stage:  # noqa: ANN401
    given = _inner(arguments, "params", "kparams")
    if isinstance(given, Mapping) and not {"old", "new"} <= given.keys():
        pairs = [(str(old), _text("rename", "a new name", new)) for old, new in given.items()]
    else:
        pairs = [_fields("rename", m, ("old",), ("new",)) for m in _maps("rename", given)]  # type: ignore[misc]
    names = [old for old, _ in pairs]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise _wrong("rename", f"{twice[0]!r} twice", "each name once")
    return Rename(dict(_some("rename", pairs)))


def _replace(arguments: Any, _: _Context) -> Stage:  # noqa: ANN401
    edits = []
    for entry in _maps("replace", _inner(arguments, "replacements")):
        found = _fields("replace", entry, _PARAM, ("old",), ("new",))
        if not found[1]:
            raise _wrong("replace", "an empty text to replace", NAMES["replace"].example)
        edits.append(Replacement(*found))
    return Edit(_some("replace", edits))


def _trim(arguments: Any, _: _Context) -> Stage:  # noqa: ANN401
    edits: list[Trimming] = []
    if isinstance(arguments, Mapping) and arguments.keys() & {"prefixes", "suffixes"}:
        _check_keys("trim", arguments, ("prefixes", "suffixes"))
        for entry in _maps("trim", arguments.get("prefixes") or ()):
            param, text = _fields("trim", entry, _PARAM, ("trim",))
            edits.append(Trimming(param, prefix=text))
        for entry in _maps("trim", arguments.get("suffixes") or ()):
            param, text = _fields("trim", entry, _PARAM, ("trim",))
            edits.append(Trimming(param, suffix=text))
        return Edit(_some("trim", edits))
    for entry in _maps("trim", arguments):
        _check_keys("trim", entry, (*_PARAM, "prefix", "suffix"))
        ends = {e: _text("trim", e, entry[e]) for e in ("prefix", "suffix") if e in entry}
        (param,) = _fields("trim", {k: v for k, v in entry.items() if k not in ends}, _PARAM)
        if not any(ends.values()):
            raise _wrong("trim", "neither a prefix nor a suffix", NAMES["trim"].example)
        edits.append(Trimming(param, **ends))
    return Edit(_some("trim", edits))


def _tags(arguments: Any, context: _Context) -> Stage:  # noqa: ANN401
    given = _inner(arguments, "tags") if _is_nested(arguments, "tags") else arguments
    if isinstance(given, Mapping) and set(given) != {"key", "value"}:
        pairs = list(given.items())
    else:
        pairs = [_fields("tags", m, ("key",), ("value",)) for m in _maps("tags", given)]  # type: ignore[misc]
    made: dict[str, str] = {}
    for name, value in _some("tags", pairs):
        if not isinstance(name, str) or not name:
            raise _wrong("tags", f"the name {name!r}", "a text")
        made[name] = _expanded(_scalar("tags", name, value), context.environ)
    return Tags(made)


def _redact(arguments: Any, context: _Context) -> Stage:  # noqa: ANN401
    from kcap.filter import Filter

    if not isinstance(arguments, Mapping):
        raise _wrong("redact", repr(arguments), NAMES["redact"].example)
    known = ("columns", "params", "patterns", "paths", "where", "key-file")
    _check_keys("redact", arguments, known)
    columns = [n for k in ("columns", "params") for n in _texts("redact", arguments.get(k) or ())]
    given = _texts("redact", arguments.get("patterns") or ())
    paths = arguments.get("paths", "whole")
    if paths not in {"whole", "components"}:
        raise _wrong("redact", f"paths: {paths!r}", "whole or components")
    where = arguments.get("where")
    found = patterns.chosen(given if given or columns else (patterns.SECRETS,))
    rules = Rules(
        Names(columns, "redact", both=True),
        found,
        components=paths == "components",
        where=None if where is None else Filter.of(_text("redact", "where", where)),
    )
    return Redact(Key(_key(arguments, context)), rules)


def _key(arguments: Mapping[str, Any], context: _Context) -> bytes:
    file = arguments.get("key-file")
    if file is not None:
        return tokens.load(_text("redact", "key-file", file))
    if context.key is None:
        hint = "'kcap redact --new-key FILE' makes one"
        raise KcapError("redact: there is no key", expected="key-file: FILE", hint=hint)
    return context.key


_MAKERS: Final[dict[str, Callable[[Any, _Context], Stage]]] = {
    "remove": _remove,
    "rename": _rename,
    "replace": _replace,
    "trim": _trim,
    "tags": _tags,
    "redact": _redact,
}


def _expanded(text: str, environ: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] is None:
            return "%"
        if match[1] not in environ:
            what = f"tags: the environment has no variable {match[1]}"
            raise KcapError(what, expected=f"{match[0]} to be set", hint="%% is a percent sign")
        return environ[match[1]]

    return _VARIABLE.sub(value, text)


def _is_nested(arguments: Any, name: str) -> bool:  # noqa: ANN401
    """Whether a list stands one level further down, as in Fibratus's files."""
    return (
        isinstance(arguments, Mapping)
        and set(arguments) == {name}
        and isinstance(arguments[name], Sequence | Mapping)
        and not isinstance(arguments[name], str)
    )


def _inner(arguments: Any, *names: str) -> Any:  # noqa: ANN401
    for name in names:
        if _is_nested(arguments, name):
            return arguments[name]
    return arguments


def _maps(name: str, value: Any) -> list[Mapping[str, Any]]:  # noqa: ANN401
    found = [value] if isinstance(value, Mapping) else value
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise _wrong(name, repr(value), NAMES[name].example)
    for entry in found:
        if not isinstance(entry, Mapping):
            raise _wrong(name, repr(entry), NAMES[name].example)
    return list(found)


def _fields(name: str, entry: Mapping[str, Any], *fields: Sequence[str]) -> tuple[str, ...]:
    """The texts of a mapping's fields, each of which may have several names."""
    _check_keys(name, entry, [f for names in fields for f in names])
    out = []
    for names in fields:
        found = [n for n in names if n in entry]
        if len(found) != 1:
            raise _wrong(name, f"no {names[0]!r} in {dict(entry)!r}", NAMES[name].example)
        out.append(_text(name, found[0], entry[found[0]]))
    return tuple(out)


def _texts(name: str, value: Any) -> list[str]:  # noqa: ANN401
    found = value.split(",") if isinstance(value, str) else value
    if not isinstance(found, Sequence):
        raise _wrong(name, repr(value), NAMES[name].example)
    return [_text(name, "a name", v).strip() for v in found]


def _text(name: str, what: str, value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, str):
        raise _wrong(name, f"{what}: {value!r}", "a text")
    return value


def _scalar(name: str, what: str, value: Any) -> str:  # noqa: ANN401
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else _text(name, what, value)


def _some(name: str, found: Sequence[_T]) -> Sequence[_T]:
    if not found:
        raise _wrong(name, "nothing", NAMES[name].example)
    return found


def _check_keys(name: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in given:
        if key not in known:
            raise _unknown(str(key), known, "key", f"{name}: ")


def _unknown(name: str, known: Iterable[str], what: str, where: str) -> KcapError:
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else None
    expected = f"one of {', '.join(names)}"
    return KcapError(f"{where}there is no {what} {name!r}", expected=expected, hint=hint)


def _wrong(name: str, found: str, expected: str) -> KcapError:
    return KcapError(f"{name}: {found}", expected=expected)
