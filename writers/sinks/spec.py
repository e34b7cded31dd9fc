"""What a user says of a sink: a URL, options behind its ``?`` or beside it.

``SCHEME://USER:PASSWORD@HOST:PORT/PATH?OPTION=VALUE&OPTION=VALUE``. The scheme says which transport
(the entry points ``kcap.sinks``), or that the sink is of this machine: ``file:PATH``, ``console:``,
``null:``. Percent signs in values are decoded; ``+`` stays what it is.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Union, get_args, get_origin, get_type_hints
from urllib.parse import unquote

from kcap import plugins
from kcap.errors import KcapError, MissingExtraError, OutputError
from kcap.writers.sinks import local, render
from kcap.writers.sinks.transport import Options, Transport, option

if TYPE_CHECKING:
    from kcap.guard.rights import User
    from kcap.model.stream import Sink

LOCAL: Final = ("console", "file", "null")
"""Schemes of sinks that need no courier."""

MASK: Final = "***"
"""What is shown of a secret."""

_ALIASES: Final = {"json": "jsonl", "pretty": "line"}
"""Other names of formats: Fibratus's."""

_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*")
_USERINFO: Final = re.compile(r"^([^/]*//)([^/@:]*)(:[^/]*)?@")
_WEB: Final = re.compile(r"(?:[^/]*\+)?https?://")
_LOGIN: Final = re.compile(r"(?<=//)[^/]*@")
_SIZE: Final = re.compile(r"(\d+)([KMGT]?)(?:i?B)?", re.IGNORECASE)
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_SECONDS: Final = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_YES: Final = frozenset({"1", "on", "true", "yes"})
_NO: Final = frozenset({"0", "false", "no", "off"})
_FILE: Final = "_file"
_FILE_BYTES: Final = 1 << 16
_GIVE_UP_S: Final = 60.0
_REACHING: Final = frozenset(
    {"endpoints", "gzip", "heartbeat", "timeout", "url", "user"}
    | {"tls_ca", "tls_cert", "tls_key", "tls_verify", "connectionTimeout"}
)
"""Options of transports that decide how a server is reached."""


@dataclass(frozen=True, kw_only=True)
class DeliveryOptions(Options):
    """The settings that every sink over a network has."""

    format: str | None = option("what a message has: jsonl, line, template …", default=None)
    template: str | None = option("the form of a message, or of a line", default=None)
    template_file: str | None = option("the same, in a file", default=None)
    what: str | None = option("events, alerts or all", default=None)
    batch: int | None = option("how many messages are sent together", default=None)
    memory_bytes: int = option("how much waits in memory", default=32 << 20)
    spool: str | None = option("a file, or a folder for one, for what waits beyond", default=None)
    spool_bytes: int = option("how much waits there", default=1 << 30)
    give_up: float | None = option(
        "seconds without success that end a replay; usually 60", default=None
    )
    dead_letters: str | None = option("a file for what the server refuses", default=None)


@dataclass(frozen=True, kw_only=True)
class LocalOptions(Options):
    """The settings of a sink of this machine."""

    format: str | None = option("jsonl, line, csv, table, template …", default=None)
    template: str | None = option("the form of a line", default=None)
    template_file: str | None = option("the same, in a file", default=None)
    fields: tuple[str, ...] = option("csv: its columns", default=())
    what: str | None = option("events, alerts or all", default=None)
    force: bool = option("replace an existing file", default=False)


@dataclass(frozen=True, slots=True)
class Spec:
    """A sink as it was asked for."""

    scheme: str
    shown: str
    """Where it is, without secrets."""
    delivery: DeliveryOptions | LocalOptions
    transport: type[Transport] | None
    """None for a sink of this machine."""
    options: Options

    @property
    def place(self) -> str:
        """What stands behind the scheme: a path, or host and path."""
        return self.options.url.partition(":")[2]

    @property
    def key(self) -> str:
        """What a spool of this sink is known by: where it sends to and what, whoever logs in."""
        # The path may be a secret, and still tells two sinks apart.
        digest = hashlib.sha256(_LOGIN.sub("", self.options.url).encode()).hexdigest()[:8]
        return f"{_LOGIN.sub('', self.shown)} as {self.form} [{digest}]"

    @property
    def form(self) -> str:
        """The format of its messages."""
        named: str | None = self.delivery.format
        if named is not None:
            return _ALIASES.get(named, named)
        if self.delivery.template is not None or self.delivery.template_file is not None:
            return render.TEMPLATE
        return local.form(self.scheme) if self.transport is None else self.transport.formats[0]

    @property
    def what(self) -> str:
        """Whether it gets events, alerts or all."""
        usual: str = getattr(self.transport, "what", render.ALL)
        return self.delivery.what or usual

    def settings(self) -> dict[str, Any]:
        """Every setting by its name, secrets masked."""
        masked = {}
        for group in (self.delivery, self.options):
            for name, value in asdict(group).items():
                # A header may be what lets somebody in, whatever it is called.
                secret = (name in type(group).secrets() or isinstance(value, dict)) and value
                masked[name.replace("_", "-")] = MASK if secret else value
        return masked | {"url": self.shown}


def schemes() -> list[str]:
    """The schemes of all sinks, by name."""
    return sorted((*LOCAL, *plugins.found(plugins.SINKS)))


def parse(url: str, options: Mapping[str, Any] | None = None) -> Spec:
    """Understand what a user says of a sink.

    Args:
        url: Its URL, with options behind a ``?``.
        options: More of them, by name; they go before those in the URL.

    Returns:
        The sink.

    Raises:
        KcapError: There is no such scheme or option, or a value can't be understood.
        MissingExtraError: The transport needs what is not installed.
    """
    head, _, query = url.partition("?")
    scheme, colon, rest = head.partition(":")
    scheme = scheme.lower()
    if not colon or not _SCHEME.fullmatch(scheme):
        raise KcapError(
            f"{_masked(head)!r} is no URL of a sink",
            expected="SCHEME://HOST:PORT/PATH?OPTION=VALUE",
            hint=f"schemes: {', '.join(schemes())}",
        )
    shown = _masked(f"{scheme}:{rest}")
    transport = _transport(scheme, shown)
    if getattr(transport, "secret_path", False):
        shown = "/".join([*shown.split("/")[:3], MASK])
    given = _given(query, shown) | {k.replace("-", "_"): v for k, v in (options or {}).items()}
    own = LocalOptions if transport is None else DeliveryOptions
    settings = Options if transport is None else transport.options
    known = [f for f in (*fields(own), *fields(settings)) if f.name != "url"]
    _from_files(given, known, shown)
    _check_names(given, [f.name for f in known], shown)
    delivery = _filled(own, given, shown)
    made = Spec(
        scheme, shown, delivery, transport, _filled(settings, given, shown, url=f"{scheme}:{rest}")
    )
    _check(made)
    return made


def opened(spec: Spec, *, live: bool, user: User | None = None) -> Sink:
    """Open a sink.

    Args:
        spec: What `parse` gave.
        live: The run records: it never gives up a server that does not answer.
        user: Who its courier becomes; None to stay who this is.

    Returns:
        The sink. Close it.

    Raises:
        KcapError: Its settings are wrong, or a file can't be opened.
    """
    if spec.transport is None:
        assert isinstance(spec.delivery, LocalOptions)
        return local.opened(
            spec.scheme,
            spec.place,
            form=spec.form,
            template=template(spec),
            fields=spec.delivery.fields,
            what=spec.what,
            force=spec.delivery.force,
        )
    if sys.platform == "win32":
        raise KcapError("sinks over a network are for Linux and other Unix systems")
    from kcap.writers.sinks.delivery import Delivery

    assert isinstance(spec.delivery, DeliveryOptions)
    give_up_s = spec.delivery.give_up
    if live:
        give_up_s = None
    elif give_up_s is None:
        give_up_s = _GIVE_UP_S
    return Delivery(spec, spec.delivery, give_up_s=give_up_s, user=user)


def template(spec: Spec) -> str | None:
    """The form of its messages.

    Args:
        spec: The sink.

    Returns:
        The template, None where none is given.

    Raises:
        KcapError: Its file can't be read.
    """
    path = spec.delivery.template_file
    return spec.delivery.template if path is None else _read(path, spec.shown, strip=False)


def values(spec: Spec) -> tuple[dict[str, str], dict[str, str]]:
    """What goes with each message beside its body: a routing key, a topic, an index.

    Args:
        spec: The sink.

    Returns:
        What is the same for all messages, and the templates of what differs, by the options' names.
    """
    given = {name: getattr(spec.options, name) for name in spec.options.templates()}
    constants: dict[str, str] = {}
    varying: dict[str, str] = {}
    for name, text in given.items():
        if text:
            differs = "{{" in text or "{%" in text
            (varying if differs else constants)[name] = text
    return constants, varying


def said(spec: Spec) -> dict[str, Any]:
    """The options that decide what is sent, to whom, and in which form: not how to get there.

    Args:
        spec: The sink.

    Returns:
        What is not as usual, by the names of options, without secrets and without headers, which
        may be some.
    """
    found: dict[str, Any] = {"format": spec.form, "what": spec.what}
    if (text := template(spec)) is not None:
        found["template"] = text
    if isinstance(spec.delivery, LocalOptions) and spec.delivery.fields:
        found["fields"] = spec.delivery.fields
    for field in fields(spec.options):
        value = getattr(spec.options, field.name)
        reaching = field.name in _REACHING or field.metadata["secret"]
        if not reaching and not isinstance(value, dict) and value not in (field.default, ()):
            found[field.name.replace("_", "-")] = value
    return found


def _transport(scheme: str, shown: str) -> type[Transport] | None:
    if scheme in LOCAL:
        return None
    if scheme not in plugins.found(plugins.SINKS) | plugins.hidden(plugins.SINKS):
        raise KcapError(
            f"there is no sink {scheme!r}",
            file=shown,
            expected=f"one of {', '.join(schemes())}",
            hint=_near(scheme, schemes()),
        )
    found: type[Transport] = plugins.load(plugins.SINKS, scheme)
    missing = plugins.missing(found)
    if missing:
        raise MissingExtraError(
            f"{scheme}: needs what is not installed",
            file=shown,
            hint=f"pip install 'kcap[{','.join(missing)}]'",
        )
    return found


def _given(query: str, shown: str) -> dict[str, Any]:
    """The options of a URL; one that stands there several times is a list."""
    given: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        name, equal, value = part.partition("=")
        if not equal:
            raise KcapError(f"{name!r} has no value", file=shown, expected=f"{name}=VALUE")
        name = unquote(name).replace("-", "_")
        found = unquote(value)
        given[name] = [*_listed(given[name]), found] if name in given else found
    return given


def _listed(value: Any) -> list[Any]:  # noqa: ANN401
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _from_files(given: dict[str, Any], known: Iterable[Field[Any]], shown: str) -> None:
    """Put the content of ``SECRET-file`` in the place of a secret."""
    for field in known:
        name = f"{field.name}{_FILE}"
        if field.metadata["secret"] and name in given:
            given[field.name] = _read(str(given.pop(name)), shown, strip=True)


def _read(path: str, shown: str, *, strip: bool) -> str:
    try:
        with Path(path).open("rb") as file:
            text = file.read(_FILE_BYTES + 1).decode()
    except OSError as e:
        raise KcapError(f"can't be read, for {shown}: {e.strerror}", file=path) from e
    except UnicodeDecodeError as e:
        raise KcapError(f"is no UTF-8 text, for {shown}", file=path, offset=e.start) from e
    if len(text) > _FILE_BYTES:
        raise KcapError(f"is too long, for {shown}", file=path, expected=f"{_FILE_BYTES} bytes")
    return text.strip("\r\n") if strip else text


def _check_names(given: Mapping[str, Any], known: Sequence[str], shown: str) -> None:
    for name in given:
        if name not in known:
            spelled = [n.replace("_", "-") for n in known]
            raise KcapError(
                f"there is no option {name.replace('_', '-')}",
                file=shown,
                expected=f"one of {', '.join(sorted(spelled))}",
                hint=_near(name.replace("_", "-"), spelled),
            )


def _near(name: str, known: Sequence[str]) -> str | None:
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else None


def _filled(cls: type[Any], given: Mapping[str, Any], shown: str, **fixed: str) -> Any:  # noqa: ANN401
    """An instance of a class of options, of those that are given."""
    types = get_type_hints(cls)
    values: dict[str, Any] = dict(fixed)
    for field in fields(cls):
        if field.name in given and field.name not in fixed:
            values[field.name] = _converted(field, types[field.name], given[field.name], shown)
    return cls(**values)


def _converted(field: Field[Any], wanted: Any, value: Any, shown: str) -> Any:  # noqa: ANN401
    """A value as the type that an option has."""
    if get_origin(wanted) in (Union, UnionType):
        if value is None:
            return None
        (wanted,) = (t for t in get_args(wanted) if t is not type(None))
    kind = get_origin(wanted) or wanted
    convert, expected = _CONVERTERS[kind]
    made = convert(value)
    if made is None:
        spelled = field.name.replace("_", "-")
        said = MASK if field.metadata["secret"] else repr(value)
        raise KcapError(f"{spelled}: {said} is not understood", file=shown, expected=expected)
    return made


def _text(value: Any) -> str | None:  # noqa: ANN401
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # YAML reads a password of digits as a number
    return value if isinstance(value, str) else None


def _integer(value: Any) -> int | None:  # noqa: ANN401
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    return None if match is None else int(match[1]) << (10 * " KMGT".index(match[2].upper() or " "))


def _seconds(value: Any) -> float | None:  # noqa: ANN401
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    return None if match is None else float(match[1]) * _SECONDS[match[2]]


def _truth(value: Any) -> bool | None:  # noqa: ANN401
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else ""
    return True if word in _YES else False if word in _NO else None


def _texts(value: Any) -> tuple[str, ...] | None:  # noqa: ANN401
    if isinstance(value, str):
        return tuple(filter(None, (part.strip() for part in value.split(","))))
    if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        return tuple(value)
    return None


def _pairs(value: Any) -> dict[str, str] | None:  # noqa: ANN401
    if isinstance(value, Mapping):
        found = {str(k): _text(v) for k, v in value.items()}
        return None if None in found.values() else found  # type: ignore[return-value]
    made = {}
    for item in _listed(value):
        name, colon, rest = item.partition(":") if isinstance(item, str) else ("", "", "")
        if not colon:
            return None
        made[name.strip()] = rest.strip()
    return made


_CONVERTERS: Final[Mapping[Any, tuple[Callable[[Any], Any], str]]] = {
    str: (_text, "a text"),
    int: (_integer, "a whole number, or a size as 32M"),
    float: (_seconds, "seconds, or a duration as 500ms, 10s, 5m"),
    bool: (_truth, "yes or no"),
    tuple: (_texts, "texts, with commas between them"),
    dict: (_pairs, "NAME: VALUE, once for each name"),
}


def _check(spec: Spec) -> None:
    """Refuse what can be seen to be wrong before anything is opened."""
    said = spec.delivery
    if spec.what not in render.WHAT:
        _refuse(spec, "what", spec.what, render.WHAT)
    if said.template is not None and said.template_file is not None:
        raise KcapError("template and template-file are both given", file=spec.shown)
    if spec.transport is None or not isinstance(said, DeliveryOptions):
        return
    if spec.form not in spec.transport.formats:
        _refuse(spec, "format", spec.form, spec.transport.formats)
    for name in ("batch", "memory_bytes", "spool_bytes", "give_up"):
        value = getattr(said, name)
        if value is not None and value <= 0:
            spelled = name.replace("_", "-")
            raise KcapError(f"{spelled}: {value} is too small", file=spec.shown, expected="1")


def _refuse(spec: Spec, name: str, value: str, known: Sequence[str]) -> None:
    raise OutputError(
        f"{name}: {value!r} is not known here",
        file=spec.shown,
        expected=f"one of {', '.join(known)}",
        hint=_near(value, known),
    )


def _masked(url: str) -> str:
    """A URL without the password in it, or the token that is its user."""
    return _USERINFO.sub(_masked_login, url)


def _masked_login(found: re.Match[str]) -> str:
    before, user, password = found.groups()
    if password in (None, ":"):
        # Where users have no names, one without a password is it.
        return f"{before}{MASK}@" if user and _WEB.fullmatch(before) else found[0]
    return f"{before}{user}:{MASK}@"
