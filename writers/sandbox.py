"""What a template may do: jinja2 without loaders, clocks, chance, and without unbounded work.

A template is a list of statements over one event. Names hold plain values and lists of a limited
depth, loops take their steps from a budget, and every text has a longest length, so that no
template, however odd, takes more than a moment or a few megabytes for an event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import jinja2.filters as standard
from jinja2 import ChainableUndefined, StrictUndefined, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateAssertionError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from markupsafe import escape

from kcap.errors import LimitError
from kcap.model import text
from kcap.writers import rendered

BUDGET: Final = "\0budget"
"""The name, which no template can write, of the steps that are left for an event."""

STEPS: Final = 200_000
"""Parts of a template that are worked through for an event, those in a loop each time."""

ITEMS: Final = 10_000
"""Longest list that a template makes."""

_INTEGER_BITS: Final = 1024
_ROUND_DIGITS: Final = 30
_DEPTH: Final = 2
_LISTS: Final = (list, tuple, dict)
_LOOP: Final = " loop"
_HELD: Final = " held"
_CONCAT: Final = " concat"

_ALLOWED: Final = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign),
    *(nodes.With, nodes.Name, nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair),
    *(nodes.Keyword, nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call, nodes.Getattr),
    *(nodes.Getitem, nodes.Slice, nodes.Concat, nodes.Compare, nodes.Operand, nodes.BinExpr),
    nodes.UnaryExpr,
)
"""The parts of jinja2's language that there are."""

_METHODS: Final = frozenset(
    (
        *("capitalize", "casefold", "count", "endswith", "find", "isalnum", "isalpha", "isascii"),
        *("isdecimal", "isdigit", "islower", "isnumeric", "isprintable", "isspace", "istitle"),
        *("isupper", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "rfind"),
        *("rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip"),
        *("swapcase", "title", "upper"),
    )
)
"""Methods of text; those that make longer text of short arguments are not among them."""

OF_MAPPINGS: Final = frozenset({"get", "items", "keys", "values"})
"""Methods of what has names and values."""

_FUNCTIONS: Final = frozenset({"range"})
_OF_JINJA: Final = frozenset({"caller", "kwargs", "self", "super", "varargs"})
"""Names that stand for parts of the template itself."""

_STANDARD: Final = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items"),
    *("last", "length", "list", "lower", "map", "max", "min", "reject", "select", "sort"),
    *("title", "trim", "truncate", "unique", "upper", "urlencode"),
)
"""Filters of jinja2 whose results are no longer than what they are given, by a small factor."""


class Missing(rendered.Absent, ChainableUndefined):
    """A value that an event does not have: shown as a placeholder, and so is what is made of it.

    A comparison with it is false, as in filters.
    """

    __slots__ = ()
    placeholder = ""

    def _same(self, *_: Any) -> Any:  # noqa: ANN401
        return self

    def _false(self, _: object) -> bool:
        return False

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _same
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _same
    __pow__ = __rpow__ = __pos__ = __neg__ = __call__ = _same
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _false  # type: ignore[assignment]
    __hash__ = Undefined.__hash__

    def __str__(self) -> str:
        return self.placeholder


class Required(rendered.Absent, StrictUndefined):
    """A value that an event does not have and has to have: an error, however it is used."""

    __slots__ = ()

    def _json(self) -> str:
        return str(self)


def _missing(placeholder: str | None) -> type[Undefined]:
    if placeholder is None:
        return Required
    return type("Missing", (Missing,), {"__slots__": (), "placeholder": placeholder})


class Environment(ImmutableSandboxedEnvironment):
    """Compiles templates, within bounds.

    Args:
        placeholder: What stands for a missing value; None where that is an error.
        printable: Escape what could steer a terminal in every value.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, placeholder: str | None, *, printable: bool) -> None:
        show = (lambda value: text.printable(rendered.text_of(value))) if printable else None
        super().__init__(
            undefined=_missing(placeholder), finalize=show or rendered.text_of, cache_size=0
        )
        self.globals = {}
        known = {name: standard.FILTERS[name] for name in _STANDARD}
        self.filters = {**known, **_OWN, _LOOP: _looped, _HELD: _held, _CONCAT: _concat}
        self.binop_table = {**self.binop_table, "+": _add, "*": _mul, "**": _pow, "%": _mod}

    def getattr(self, obj: Any, attribute: str) -> Any:  # noqa: ANN401
        """See `jinja2.Environment.getattr`: what a mapping holds comes before its methods."""
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:  # noqa: ANN401
        """See `SandboxedEnvironment.is_safe_attribute`: a short list of methods."""
        if isinstance(obj, str):
            return attr in _METHODS
        if isinstance(obj, Mapping):
            return attr in OF_MAPPINGS
        return isinstance(obj, (LoopContext, Undefined)) and not attr.startswith("_")

    def wrap_str_format(self, value: Any) -> None:  # noqa: ANN401
        """See `SandboxedEnvironment.wrap_str_format`: there is no ``format``, which has no end."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:  # noqa: ANN401
        """See `SandboxedEnvironment.unsafe_undefined`: an error, not a missing value."""
        raise SecurityError(f"{attribute} of a value of type {type(obj).__name__} is not for use")


def bounded(tree: nodes.Template) -> nodes.Template:
    """Refuse what templates may not do, and put limits around the rest.

    Args:
        tree: A parsed template; changed.

    Returns:
        The same template with its limits.

    Raises:
        TemplateAssertionError: There is something in it that templates here do not have.
    """
    _check(tree)
    made: nodes.Template = _Limits().visit(tree)
    return made


def _check(node: nodes.Node) -> None:
    for inner in node.iter_child_nodes():
        _check(inner)
    what = type(node).__name__.lower()
    if not isinstance(node, _ALLOWED):
        raise TemplateAssertionError(f"there is no {what} in these templates", node.lineno)
    if isinstance(node, nodes.For) and node.recursive:
        raise TemplateAssertionError("no loop calls itself in these templates", node.lineno)
    if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
        raise TemplateAssertionError(f"nothing is called {node.attr} here", node.lineno)
    if isinstance(node, nodes.Name) and node.name in _OF_JINJA:
        raise TemplateAssertionError(f"nothing is called {node.name} here", node.lineno)
    if isinstance(node, nodes.Call):
        called = node.node
        function = isinstance(called, nodes.Name) and called.name in _FUNCTIONS
        if not (function or isinstance(called, nodes.Getattr)):
            raise TemplateAssertionError("this can't be called: it is no function", node.lineno)


class _Limits(NodeTransformer):
    """Puts a function of ours around each loop, each name that is given a value, and each ``~``."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  (as jinja2 calls it)
        """Take each turn of a loop from the budget."""
        cost = nodes.Const(1 + sum(1 for part in node.body for _ in _all(part)))
        self.generic_visit(node)
        assert isinstance(node.iter, nodes.Expr)
        node.iter = _through(_LOOP, node.iter, cost)
        return node

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:  # noqa: N802
        """Let a name hold nothing that grows without bounds."""
        self.generic_visit(node)
        assert isinstance(node.node, nodes.Expr)
        node.node = _through(_HELD, node.node)
        return node

    def visit_With(self, node: nodes.With) -> nodes.Node:  # noqa: N802
        """The same for the names of ``with``."""
        self.generic_visit(node)
        node.values = [_through(_HELD, value) for value in node.values]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        """Let no text get too long."""
        self.generic_visit(node)
        return _through(_CONCAT, nodes.List(node.nodes, lineno=node.lineno))


def _all(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    for inner in node.iter_child_nodes():
        yield from _all(inner)


def _through(name: str, value: nodes.Expr, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(args), [], None, None, lineno=value.lineno)


@pass_context
def _looped(context: Context, items: Iterable[Any], cost: int) -> Iterator[Any]:
    left = context.parent[BUDGET]
    for item in items:
        left[0] -= cost
        if left[0] < 0:
            raise LimitError(
                "the loops of the template take too long", expected=f"at most {STEPS:,} steps"
            )
        yield _held(item)


def _held(value: Any) -> Any:  # noqa: ANN401
    """A value that a name may hold: lists of lists at most, else a few lines make billions."""
    if isinstance(value, str):
        rendered.check_chars(len(value))
    elif isinstance(value, _LISTS):
        _check_items(_items(value, _DEPTH))
    return value


def _items(value: Any, depth: int) -> int:  # noqa: ANN401
    """How many items a list has, those of lists in it included."""
    if not isinstance(value, _LISTS):
        return 0
    if not depth:
        raise LimitError(
            "a name can't hold lists so deep", expected=f"at most {_DEPTH} in each other"
        )
    inside = value.values() if isinstance(value, dict) else value
    return len(value) + sum(_items(item, depth - 1) for item in inside)


def _concat(values: list[Any]) -> str:
    return rendered.joined("", [rendered.text_of(value) for value in values])


def _check_items(count: int) -> None:
    if count > ITEMS:
        raise LimitError(f"a list of {count:,} items", expected=f"at most {ITEMS:,}")


def _add(left: Any, right: Any) -> Any:  # noqa: ANN401
    if isinstance(left, str) and isinstance(right, str):
        rendered.check_chars(len(left) + len(right))
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        _check_items(len(left) + len(right))
    return left + right


def _mul(left: Any, right: Any) -> Any:  # noqa: ANN401
    if not all(isinstance(side, (int, float, Missing)) for side in (left, right)):
        raise TypeError("only numbers can be multiplied")
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    return left * right


def _pow(left: Any, right: Any) -> Any:  # noqa: ANN401
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * abs(right))
    return left**right


def _mod(left: Any, right: Any) -> Any:  # noqa: ANN401
    if isinstance(left, str):
        raise TypeError("% is for numbers; ~ puts texts together")
    return left % right


def _check_bits(bits: int) -> None:
    if bits > _INTEGER_BITS:
        raise LimitError("a number gets too large", expected=f"at most {_INTEGER_BITS} bits")


def _kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that leaves a missing value missing."""

    def apply(value: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        return value if isinstance(value, Undefined) else function(value, *args, **options)

    return apply


def _join(values: Iterable[Any], separator: str = "") -> str:
    parts = []
    for value in values:
        parts.append(rendered.text_of(value))
        _check_items(len(parts))
    return rendered.joined(str(separator), parts)


def _replace(value: Any, old: str, new: str, count: int = -1) -> str:  # noqa: ANN401
    found, old, new = rendered.text_of(value), str(old), str(new)
    times = found.count(old) if count < 0 else min(count, found.count(old))
    rendered.check_chars(len(found) + times * (len(new) - len(old)))
    return found.replace(old, new, count)


def _round(value: float, digits: int = 0) -> float:
    if abs(digits) > _ROUND_DIGITS:
        raise LimitError(f"rounding to {digits} digits", expected=f"at most {_ROUND_DIGITS}")
    return round(value, digits) if digits else round(value)


def _sum(values: Iterable[float]) -> float:
    numbers = list(values)
    if not all(isinstance(value, (int, float)) for value in numbers):
        raise TypeError("only numbers can be summed up")
    return sum(numbers)


def range_of(*bounds: int) -> range:
    """The numbers that a template's ``range`` gives.

    Args:
        bounds: As of Python's range.

    Returns:
        The numbers.

    Raises:
        LimitError: There are too many.
    """
    made = range(*bounds)
    _check_items(len(made))
    return made


FILTERS: Final[Mapping[str, str]] = {
    "utc": "a time in ns, as ts, in RFC 3339; utc('%Y-%m-%d %H:%M:%S') in a form of one's own",
    "json": "JSON, of any value; a missing one is null",
    "hex": "an integer as 0x7f00, bytes as digits",
    "default(TEXT)": "in place of a missing value; also d(TEXT)",
    "replace(OLD, NEW)": "text in place of other text",
    "join(TEXT)": "the items of a list with text between them",
    "escape": "text for HTML; also e",
    "round(DIGITS)": "a number, rounded",
    "string": "a value as it is shown",
    "sum": "of numbers",
}
"""Filters of ours, and those of jinja2 that need a word."""

AS_IN_JINJA: Final = tuple(sorted({*_STANDARD} - {"d", "default"}))
"""The other filters that templates have."""

_OWN: Final[dict[str, Callable[..., Any]]] = {
    "e": _kept(lambda value: str(escape(rendered.text_of(value)))),
    "escape": _kept(lambda value: str(escape(rendered.text_of(value)))),
    "hex": _kept(rendered.hex_of),
    "join": _kept(_join),
    "json": rendered.json_of,
    "replace": _kept(_replace),
    "round": _kept(_round),
    "string": _kept(rendered.text_of),
    "sum": _kept(_sum),
    "tojson": rendered.json_of,
    "utc": _kept(rendered.utc_of),
}
"""Filters of ours, in jinja2's names where it has one."""
