"""Where the fields stand that the BPF programs read, by the names of their constants.

A constant ``o_task_struct__real_parent`` of the object is the place of ``real_parent`` in the
kernel's ``struct task_struct``. Two underscores stand for a dot; a field whose own name begins
with two has four (``o_inode____i_ctime`` is ``inode.__i_ctime``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from kcap.readers.live.bpf.btf import Btf

PREFIX: Final = "o_"
"""What the names of such constants begin with."""

NOWHERE: Final = 0xFFFF_FFFF
"""The place of a field that this kernel does not have; the programs then leave it out."""

_SPELLINGS: Final = (
    ("inode.i_ctime.tv_sec", "inode.__i_ctime.tv_sec", "inode.i_ctime_sec"),
    ("inode.i_ctime.tv_nsec", "inode.__i_ctime.tv_nsec", "inode.i_ctime_nsec"),
    ("dentry.d_iname", "dentry.d_shortname"),
)
"""What kernels came to call the same field, the oldest first: of times before 6.6, before 6.11,
since; of names before 6.14, since."""


class Offsets(NamedTuple):
    """What was found of the fields that an object asks for."""

    constants: dict[str, int]
    """The value of each constant."""
    unavailable: tuple[str, ...]
    """Fields that this kernel does not have, like ``inode.i_nlink``, in order.

    One that it calls by another name, for which there is a constant too, is not among them.
    """


def field_path(constant: str) -> str:
    """The field that a constant is for.

    Args:
        constant: Its name, like ``o_mnt_namespace__ns__inum``.

    Returns:
        Structure and fields, like ``mnt_namespace.ns.inum``.
    """
    path: list[str] = []
    own = ""
    for part in constant.removeprefix(PREFIX).split("__"):
        if part:
            path.append(own + part)
            own = ""
        else:
            own += "__"
    return ".".join(path)


def resolve(constants: Iterable[str], kernel_btf: Btf) -> Offsets:
    """Look the fields up in the kernel's types.

    Args:
        constants: Names of an object's constants; others than such places are passed over.
        kernel_btf: The kernel's types.

    Returns:
        The place of each field.
    """
    paths = {name: field_path(name) for name in constants if name.startswith(PREFIX)}
    places = {name: kernel_btf.offset(path) for name, path in paths.items()}
    lacking = {paths[name] for name, place in places.items() if place is None}
    for names in _SPELLINGS:
        asked = [path for path in names if path in paths.values()]
        known = not lacking.issuperset(asked)
        lacking.difference_update(asked if known else asked[:-1])
    return Offsets(
        {name: NOWHERE if place is None else place for name, place in places.items()},
        tuple(sorted(lacking)),
    )
