"""Signatures in Python: a class with ``id``, ``selectors`` and ``on_match``.

A signature is code, and runs in the process that reads the events, with all its rights: unlike a
filament it is trusted. As root kcap loads none that somebody else than root can change.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, ClassVar, Final

from kcap import trust
from kcap.detect.rule import About, Context, Event, Problem, Rule, Selector
from kcap.errors import KcapError
from kcap.filter import Filter
from kcap.filter.errors import FilterError
from kcap.model import alert

_SELECTORS: Final = re.compile(r"^\s*selectors\s*[:=]", re.MULTILINE)
"""A file of signatures is run to be read: one that only imports a module of that name is not."""

_TEXTS: Final = ("name", "version", "description", "severity")
_LISTS: Final = ("tags", "techniques", "references")


class Signature:
    """A base class for signatures; anything with the same names will do.

    Example:
        >>> class Shell(Signature):
        ...     id = "EX-1"
        ...     name = "A shell was started"
        ...     selectors = {"start": "evt.name = 'execve' and ps.name = 'sh'"}
        ...
        ...     def on_match(self, ctx, selector, event):
        ...         ctx.alert(data={"cmdline": event.field("ps.cmdline")})
        >>> rule_of(Shell).about.id
        'EX-1'
    """

    id: ClassVar[str]
    name: ClassVar[str] = ""
    version: ClassVar[str] = "1"
    severity: ClassVar[str] = "medium"
    description: ClassVar[str] = ""
    tags: ClassVar[tuple[str, ...]] = ()
    techniques: ClassVar[tuple[str, ...]] = ()
    references: ClassVar[tuple[str, ...]] = ()
    text: ClassVar[str | None] = None
    selectors: ClassVar[Mapping[str, str]]
    """Names to filters: which events `on_match` is called for."""
    fields: ClassVar[tuple[str, ...]] = ()
    """Fields that it asks events for, of what only the state tells: ``ps.parent.exe``."""

    def on_match(self, ctx: Context, selector: str, event: Event) -> None:
        """Look at an event.

        Args:
            ctx: Raises alerts, asks for deadlines.
            selector: The name of the selector that wants the event.
            event: The event; good until this returns.
        """
        del selector, event
        ctx.alert()

    def on_deadline(self, ctx: Context, key: object) -> None:
        """A time has come that was asked for with ``ctx.at``.

        Args:
            ctx: As for `on_match`.
            key: What was given with the time.
        """

    def on_end(self, ctx: Context) -> None:
        """No event follows.

        Args:
            ctx: As for `on_match`.
        """


class _Machine:
    """A signature as the engine calls it."""

    def __init__(self, signature: Any, names: tuple[str, ...]) -> None:  # noqa: ANN401
        self._names = names
        self._on_match: Callable[..., None] = signature.on_match
        self._on_deadline = getattr(signature, "on_deadline", None)
        self._on_end = getattr(signature, "on_end", None)

    def match(self, context: Context, selector: int, event: Event) -> None:
        """See `kcap.detect.rule.Machine`."""
        self._on_match(context, self._names[selector], event)

    def deadline(self, context: Context, key: object) -> None:
        """See `kcap.detect.rule.Machine`."""
        if self._on_deadline is not None:
            self._on_deadline(context, key)

    def end(self, context: Context) -> None:
        """See `kcap.detect.rule.Machine`."""
        if self._on_end is not None:
            self._on_end(context)


def rule_of(signature: type, file: str = "", line: int | None = None) -> Rule:
    """A signature as a rule.

    Args:
        signature: The class; each run makes one object of it.
        file: Where it is from.
        line: Where it begins there.

    Returns:
        The rule.

    Raises:
        KcapError: It lacks something, or something in it is of the wrong type or no filter.
    """
    own: Any = getattr(signature, "id", None)
    named = isinstance(own, str) and own != ""

    def wrong(what: str, expected: str, hint: str | None = None) -> KcapError:
        who = f"the rule {own}" if named else f"the signature {signature.__name__}"
        return KcapError(
            f"{who}: {what}",
            file=file or None,
            line=line,
            expected=expected,
            hint=hint,
        )

    if not isinstance(own, str) or not named:
        raise wrong("its id is no text", "id = 'EX-1', say")
    said: dict[str, Any] = {}
    for name in (*_TEXTS, "text"):
        value: Any = getattr(signature, name, None)
        if value is not None and not isinstance(value, str):
            raise wrong(f"its {name} is {type(value).__name__}", "text")
        if value is not None:
            said[name] = value
    for name in (*_LISTS, "fields"):
        found: Any = getattr(signature, name, ())
        many = isinstance(found, list | tuple | set | frozenset)
        if not many or not all(isinstance(each, str) for each in found):
            raise wrong(f"its {name} are no texts", f"{name} = ('...', '...')")
        said[name] = tuple(found)
    try:
        said["severity"] = alert.severity(said.get("severity", "medium"))
    except KcapError as error:
        raise wrong(f"its severity: {error.what}", error.expected or "") from error
    selectors = getattr(signature, "selectors", None)
    if not isinstance(selectors, Mapping) or not selectors:
        raise wrong("it has no selectors", "selectors = {'name': 'a filter'}")
    if not callable(getattr(signature, "on_match", None)):
        raise wrong("it has no on_match", "def on_match(self, ctx, selector, event)")
    chosen = []
    for name, text in selectors.items():
        try:
            chosen.append(Selector(str(name), text if isinstance(text, Filter) else _filter(text)))
        except FilterError as error:
            what = f"its selector {name!r} can't be understood: {error.what}"
            raise wrong(what, error.expected or "a filter", error.hint) from error
    names = tuple(selector.name for selector in chosen)
    fields = frozenset(said.pop("fields"))
    said["name"] = said.get("name") or own
    about = About(id=own, kind="python", file=file, line=line, **said)
    return Rule(about, tuple(chosen), lambda: _Machine(signature(), names), fields=fields)


def _filter(text: object) -> Filter:
    if not isinstance(text, str):
        shown = repr(text)
        raise FilterError(f"{type(text).__name__} in place of a filter", shown, 0, len(shown))
    return Filter.of(text)


class PythonRules:
    """Reads files of signatures (`kcap.detect.rule.Loader`)."""

    kind: ClassVar[str] = "python"
    suffixes: ClassVar[tuple[str, ...]] = (".py",)

    @staticmethod
    def sniff(text: str, path: str) -> bool:
        """See `kcap.detect.rule.Loader`."""
        return path.endswith(".py") and _SELECTORS.search(text) is not None

    def load(self, text: str, path: str) -> Iterable[Rule | Problem]:
        """See `kcap.detect.rule.Loader`; runs the file.

        Args:
            text: Its content.
            path: Its name.

        Returns:
            A rule for each class in it with an ``id`` and ``selectors``, in their order.

        Raises:
            KcapError: As root, somebody else can change the file.
        """
        trust.check(path)
        try:
            module = _executed(text, path)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - other files go on
            return [Problem(_refused(error, path))]
        return list(_rules(module, text, path))

    def finish(self) -> Iterable[Rule | Problem]:
        """See `kcap.detect.rule.Loader`."""
        return ()


def _executed(text: str, path: str) -> ModuleType:
    """Run a file, as a module that nobody else can import."""
    module = ModuleType(f"kcap_rules_{len(path)}_{path}")
    module.__file__ = path
    # Dataclasses look up the module that they are of.
    sys.modules[module.__name__] = module
    exec(compile(text, path, "exec"), module.__dict__)  # noqa: S102 - that is what it is for
    return module


def _rules(module: ModuleType, text: str, path: str) -> Iterator[Rule | Problem]:
    lines = _lines(text)
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and hasattr(value, "id")
        and hasattr(value, "selectors")
    ]
    for signature in found:
        try:
            yield rule_of(signature, path, lines.get(signature.__name__))
        except KcapError as error:
            yield Problem(error, str(getattr(signature, "id", "")) or None)


def _lines(text: str) -> dict[str, int]:
    """Where the classes of a file begin."""
    return {
        node.name: node.lineno for node in ast.parse(text).body if isinstance(node, ast.ClassDef)
    }


def _refused(error: BaseException, path: str) -> KcapError:
    """Why a file could not be run."""
    if isinstance(error, SyntaxError):
        return KcapError(f"no Python: {error.msg}", file=path, line=error.lineno)
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == path), None)
    what = f"it can't be loaded: {type(error).__name__}: {error}"
    return KcapError(what, file=path, line=line)
