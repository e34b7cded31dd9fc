"""The constants of a list, looked up: ten thousand of them take no longer than ten."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final

from kcap.filter.syntax import Address, Op
from kcap.filter.values import Named, address, compare, fold, items

_ADDRESSES: Final = (IPv4Address, IPv6Address)
_NETWORKS: Final = (IPv4Network, IPv6Network)


class Members:
    """Says of a value what ``in`` or ``iin`` says of it and all constants (`values.compare`).

    Args:
        op: The operator.
        constants: The list.
    """

    def __init__(self, op: Op, constants: Sequence[Any]) -> None:
        texts = [c for c in constants if isinstance(c, str)]
        numbers = [c for c in constants if isinstance(c, int | float) and not isinstance(c, bool)]
        self._op = op
        self._plain = frozenset(texts)
        self._texts = frozenset(map(fold, texts)) if op.folds else self._plain
        self._flags = tuple(text for text in texts if "|" in text)
        """Texts of several flags, which a number's may have in another order."""
        self._bools = frozenset(c for c in constants if isinstance(c, bool))
        self._numbers = frozenset(numbers)
        self._digits = frozenset(str(n) for n in numbers if isinstance(n, int))
        self._addresses = frozenset(
            getattr(c, "ipv4_mapped", None) or c for c in constants if isinstance(c, _ADDRESSES)
        )
        self._networks: dict[tuple[int, int], set[int]] = defaultdict(set)
        """By version and the bits that tell no networks apart: the bits that do."""
        for each in constants:
            if isinstance(each, _NETWORKS):
                rest = each.max_prefixlen - each.prefixlen
                self._networks[each.version, rest].add(int(each.network_address) >> rest)

    def has(self, value: Any) -> bool:  # noqa: ANN401 - any value
        """Whether a value, or an item of it, is one of the constants.

        Args:
            value: Any value.

        Returns:
            False for a missing one.
        """
        return any(self._one(item) for item in items(value))

    def _one(self, value: Any) -> bool:  # noqa: ANN401 - any value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, bool):
            return value in self._bools
        if isinstance(value, int | float):
            # Of equal hash where they are equal, whatever the size.
            return value in self._numbers or (isinstance(value, int) and str(value) in self._plain)
        if isinstance(value, Named):
            text = fold(value.text) if self._op.folds else value.text
            known = value.number in self._numbers or text in self._texts
            return known or compare(self._op, value, self._flags)
        return False

    def _text(self, text: str) -> bool:
        if (fold(text) if self._op.folds else text) in self._texts or text in self._digits:
            return True
        if not self._addresses and not self._networks:
            return False
        found = address(text)
        return found is not None and (found in self._addresses or self._within(found))

    def _within(self, found: Address) -> bool:
        number = int(found)
        return any(
            number >> rest in known
            for (version, rest), known in self._networks.items()
            if version == found.version
        )
