"""Whether a chunk can hold an event that a filter wants, told by its index alone.

Of a comparison it is known when it is certainly false of every row; nothing is ever certainly
true, as a row may lack a value. So ``not`` never rules a chunk out, ``and`` does where one part
does, ``or`` where all do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final

from kcap.filter.cells import useful_columns
from kcap.filter.engine import Engine
from kcap.filter.fields import When
from kcap.filter.leaf import Leaf
from kcap.filter.syntax import And, Expr, Not, Op, Or
from kcap.filter.values import Named
from kcap.model import logical
from kcap.where import Anything, Integers, Interval, Nothing, Texts

if TYPE_CHECKING:
    from kcap.where import Values

_LOOKED_UP: Final = 1000
"""Members of a list that are looked for one by one."""


def may_match(engine: Engine, values_of: Callable[[str], Values], known: Collection[str]) -> bool:
    """Whether some row of a chunk may be wanted.

    Args:
        engine: The filter.
        values_of: What a column may hold in the chunk.
        known: All columns of the capture.

    Returns:
        False where certainly none is.
    """

    def may(node: Expr) -> bool:
        if isinstance(node, And):
            return all(may(part) for part in node.parts)
        if isinstance(node, Or):
            return any(may(part) for part in node.parts)
        if isinstance(node, Not):
            return True
        return _leaf_may(engine, engine.leaf(node), values_of, known)

    return may(engine.expr)


def _leaf_may(
    engine: Engine,
    leaf: Leaf,
    values_of: Callable[[str], Values],
    known: Collection[str],
) -> bool:
    if len(leaf.fields) != 1 or leaf.of(None):
        return True
    resolved = engine.fields[leaf.fields[0]]
    for source in resolved.field.sources:
        if source.when is not None and not _when_may(source.when, values_of):
            continue
        for name in useful_columns(source):
            if source.column.startswith("state:"):
                return True
            if name not in known:
                continue
            # Filters look at ns; Arrow's expressions at what is left of them in microseconds.
            found = values_of(logical.TIME_NS if name == logical.TIME else name)
            if isinstance(found, Nothing):
                continue
            plain = not (source.function or resolved.key or resolved.field.type == "map")
            if not plain or _column_may(leaf, found, decoded=source.column.startswith("arg:")):
                return True
    return False


def _when_may(when: When, values_of: Callable[[str], Values]) -> bool:
    """Whether the condition of a source may hold for some row."""
    found = values_of(when.column)
    if not isinstance(found, Texts):
        return True
    if when.unless:
        return True  # of a row without a value, too
    return not found.values.isdisjoint(when.values)


def _column_may(leaf: Leaf, found: Values, *, decoded: bool) -> bool:
    """Whether the leaf may hold for a value of a column."""
    if isinstance(found, Anything) or leaf.presence:
        return True
    if isinstance(found, Texts):
        return bool(leaf.each(sorted(found.values)).any())
    op, constants = leaf.op, leaf.constants
    if op is None or constants is None or len(constants) > _LOOKED_UP:
        return True
    if isinstance(found, Interval | Integers):
        return decoded or any(_number_may(op, found, c) for c in constants)
    # A filter of strings: of these, only equality can be ruled out.
    if op not in (Op.EQ, Op.IN) or not all(type(c) is str for c in constants):
        return True
    return any(found.sides(c).equal for c in constants)


def _number_may(op: Op, found: Interval | Integers, constant: Any) -> bool:  # noqa: ANN401
    if isinstance(constant, str) and op.base is Op.IN:
        return True  # its digits may be meant
    if isinstance(constant, bool | str | Named) or not isinstance(constant, int | float):
        return False
    value = int(constant)
    if value != constant:
        return True
    sides = found.sides(value)
    wanted = {
        Op.EQ: sides.equal,
        Op.IN: sides.equal,
        Op.NE: sides.less or sides.greater,
        Op.LT: sides.less,
        Op.LE: sides.less or sides.equal,
        Op.GT: sides.greater,
        Op.GE: sides.greater or sides.equal,
    }
    return wanted.get(op, True)
