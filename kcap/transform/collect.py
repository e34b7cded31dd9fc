"""Finding out what is to be hidden, before it is hidden wherever it stands."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from kcap.errors import LimitError
from kcap.model.batch import Batch
from kcap.replay.stages import Matching
from kcap.transform import texts
from kcap.transform.hiding import Hider
from kcap.transform.redact import Redact, Rules
from kcap.transform.tokens import Key

PART_CHARS: Final = 6
"""What a pattern matches is looked for elsewhere from this length on: ``true`` is everywhere."""

FOUND_BYTES: Final = 256 << 20
"""What the values that are to be hidden may take together."""

COMMON: Final = frozenset(
    [
        *("adm", "admin", "backup", "bin", "daemon", "dbus", "ftp", "games", "guest", "http"),
        *("irc", "kernel", "list", "localhost", "lp", "mail", "man", "messagebus", "mysql"),
        *("network", "news", "nginx", "nobody", "ntp", "operator", "postgres", "proxy", "root"),
        *("sshd", "sync", "sys", "syslog", "system", "systemd", "tss", "user", "users", "uucp"),
        *("www-data", "SYSTEM", "NETWORK SERVICE", "LOCAL SERVICE", "Administrator"),
    ]
)
"""Names that every host has, most of accounts. They are hidden in their columns, and not looked
for elsewhere: ``bin`` is in most paths, and says nothing there."""

_ENTRY_BYTES: Final = 300
"""What a value takes in the tables by which it is found."""


class Collector:
    """A stage that changes nothing, and takes note of all that `Redact` would hide.

    Args:
        key: The key; no token is made.
        rules: What is to be redacted.
        common: Texts that are hidden in their columns only.
    """

    def __init__(self, key: Key, rules: Rules, common: Collection[str] = COMMON) -> None:
        self._columns = rules.columns
        self._common = {text.encode() for text in common}
        self._matching = None if rules.where is None else Matching(rules.where, state=True)
        # Where only some events count, the second reading knows no pattern: it needs every match.
        self._found = _Found(key, rules, PART_CHARS if rules.where is None else 1)
        self._stage = Redact(key, Rules(rules.columns, rules.patterns), self._found)

    @property
    def literals(self) -> set[bytes]:
        """The texts and bytes that are to be hidden wherever they stand."""
        return self._found.values - self._common

    @property
    def only(self) -> frozenset[int | float | str]:
        """The numbers and texts that are to be hidden in their columns."""
        texts_ = (v.decode("utf-8", "backslashreplace") for v in self._found.values)
        return frozenset([*self._found.numbers, *texts_])

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        for name in batch.columns:
            self._columns.has(name)
        part = batch
        if self._matching is not None:
            part = batch.take(self._matching.rows(batch)).with_before(())
        self._stage.process(part)
        return batch


class _Found(Hider):
    """Leaves everything as it is, and notes what would be hidden."""

    def __init__(self, key: Key, rules: Rules, least: int) -> None:
        super().__init__(key, rules.patterns)
        self._least = least
        self.values: set[bytes] = set()
        self.numbers: set[int | float] = set()
        self._bytes_found = 0

    def whole(self, value: str) -> str:
        """Note it."""
        self._note(value.encode("utf-8", "surrogatepass"))
        return value

    def part(self, value: str) -> str:
        """Note it, unless it is so short that it says nothing elsewhere."""
        return self.whole(value) if len(value) >= self._least else value

    def whole_data(self, value: bytes) -> bytes:
        """Note it."""
        self._note(value)
        return value

    def whole_json(self, value: str) -> str:
        """Note the strings in it."""
        texts.in_json([value], lambda found: [self.whole(v) for v in found])
        return value

    def number(self, value: int) -> int:
        """Note it."""
        self.numbers.add(value)
        return value

    def real(self, value: float) -> float:
        """Note it."""
        self.numbers.add(value)
        return value

    def _note(self, value: bytes) -> None:
        if not value or value in self.values:
            return
        self.values.add(value)
        self._bytes_found += len(value) + _ENTRY_BYTES
        if self._bytes_found > FOUND_BYTES:
            what = f"more than {len(self.values):,} different values are to be hidden"
            hint = "--columns-only hides them in their own columns alone"
            expected = f"at most {FOUND_BYTES >> 20} MiB of them"
            raise LimitError(what, expected=expected, hint=hint)
