"""Shapes of events that have lost fields, or whose fields have other names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import pyarrow as pa

from kcap.model import catalogue, jsonshape, naming, shape
from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass
from kcap.transform.texts import recoded

_SHAPE = "shape"

Edit = Callable[[shape.Shape], shape.Shape]
"""Gives a shape its new form."""


def edited(batch: Batch, edit: Callable[[str], str]) -> Batch:
    """Change the shapes of a batch; each different one is looked at once.

    Args:
        batch: Events.
        edit: Gives the new text of a shape.

    Returns:
        The events.
    """
    column = batch.get(_SHAPE)
    if column is None or column.cls is not TypeClass.STR:
        return batch
    column = column.compact()
    before = column.values.dictionary.to_pylist()
    after = [edit(text) for text in before]
    if before == after:
        return batch
    values = recoded(column.codes(), pa.array(after, pa.utf8()))
    return batch.adding({_SHAPE: Column(column.cls, values, column.rows)})


def without(text: str, gone: Callable[[str], bool]) -> str:
    """A shape without some fields.

    Args:
        text: The shape.
        gone: Whether the columns of a base are gone.

    Returns:
        The shape of what is left.
    """
    found = shape.decode(text)
    aliases = _aliases(found.record)
    record = [i for i in found.record if not _is_gone(i, aliases, gone)]
    kept = [k for k, i in enumerate(found.arguments) if not gone(naming.argument(i.name))]
    if len(record) == len(found.record) and len(kept) == len(found.arguments):
        return text
    return _encode(found, record, kept, found.arguments)


def renamed(text: str, names: dict[str, str]) -> str:
    """A shape whose arguments have other names.

    An argument that had the new name of another one gives way to it, unless that is null.

    Args:
        text: The shape.
        names: Old name to new name.

    Returns:
        The new shape.
    """
    found = shape.decode(text)
    mine = [i for i in found.arguments if i.name in names]
    if not mine:
        return text
    taken = {names[i.name] for i in mine if not i.null}
    others = {i.name for i in found.arguments if i.name not in names} - taken
    items = list(found.arguments)
    kept = []
    for k, item in enumerate(found.arguments):
        new = names.get(item.name)
        if new is None and item.name in taken:
            continue
        if new is not None and item.null and new in others | taken:
            continue
        items[k] = item if new is None else item._replace(name=new)
        kept.append(k)
    return _encode(found, found.record, kept, items)


def _encode(
    found: shape.Shape,
    record: Iterable[shape.Item],
    kept: list[int],
    arguments: tuple[shape.Item, ...] | list[shape.Item],
) -> str:
    """The text of a shape with these arguments, and the form of each of them."""
    if not found.record:
        return shape.encode([arguments[k] for k in kept])
    items = []
    for item in record:
        if item.type.startswith(jsonshape.ENTRIES):
            forms = jsonshape.forms(item.type, len(found.arguments))
            left = [forms[k] for k in kept if k < len(forms)]
            items.append(item._replace(type=jsonshape.entries(left)))
        else:
            items.append(item)
    return shape.encode([arguments[k] for k in kept], items)


def _aliases(record: tuple[shape.Item, ...]) -> dict[str, str]:
    """The columns of a record's fields, by path."""
    return _known(native=any(item.name == "eventName" for item in record))


@cache
def _known(*, native: bool) -> dict[str, str]:
    families = ("tracee",) if native else ("tracee-v1beta1", "tracee-grpc")
    return {p: c for family in families for p, c in catalogue.aliases(family).items()}


def _is_gone(item: shape.Item, aliases: dict[str, str], gone: Callable[[str], bool]) -> bool:
    if item.type == jsonshape.OBJECT or item.type.startswith(jsonshape.ENTRIES):
        return False
    return gone(aliases.get(item.name) or naming.extension(item.name))
