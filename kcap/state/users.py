"""The user table: names of the users of a machine, for processes whose user id changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from kcap.model.batch import Batch
from kcap.model.classes import TypeClass
from kcap.state import rows

_CLASSES: Final = {"uid": TypeClass.I64, "name": TypeClass.STR}
"""Columns of the table in a snapshot."""


def to_batch(tables: Iterable[tuple[str, Mapping[int, str]]]) -> Batch:
    """Users as the ``users`` table of a snapshot.

    Args:
        tables: Machines, and the names of their users by id.

    Returns:
        One row a user, ordered by machine and user id.
    """
    ordered = ((machine, sorted(names.items())) for machine, names in tables)
    return rows.to_batch(_CLASSES, ordered)


def from_batch(batch: Batch) -> dict[str, dict[int, str]]:
    """Read the ``users`` table of a snapshot.

    Args:
        batch: What `to_batch` made; columns it does not know are ignored.

    Returns:
        Machine to the names of its users by id.

    Raises:
        DamagedError: A column has another class than it must, or a user has no id or name.
    """
    read = rows.from_batch(_CLASSES, batch, "user", 2)
    # Of several names for one number the first is the one that counts, as in a passwd file.
    return {machine: dict(reversed(list(map(tuple, found)))) for machine, found in read.items()}
