"""What a recording changes in the kernel's audit system, and how it is put back.

The kernel's rules themselves are the record of what was changed: a recorder that is killed leaves
its rules, whose key says how things were (`kcap.readers.live.audit.rules.Key`). The next recorder
clears up, and the last one to end restores.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import Final

from kcap.readers.live.audit import rules
from kcap.readers.live.audit.link import Control, Status
from kcap.readers.live.audit.rules import Key

BACKLOG: Final = 65_536
"""Records that may wait in the kernel while we record, some 64 MiB at most."""

_LOCKED: Final = 2
_PANIC: Final = 2


class Settings:
    """The changes of one recording.

    Args:
        control: The socket to the kernel; stays the caller's.

    Raises:
        PrivilegeError: This user may not ask.
        KcapError: The kernel gives no answer.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self.before = control.status()
        """How the audit system was found."""
        self.foreign: list[bytes] = []
        """Rules of others, as they were found."""
        self.added = 0
        """Rules of our own."""
        self.refused: str | None = None
        """Why nothing is changed."""
        self.keys: frozenset[bytes] = frozenset()
        """Keys that events may bear: our own, and those of recorders whose rules come first."""
        self._key: Key | None = None

    def change(self, wanted: Collection[str], *, all_opens: bool = False) -> None:
        """Clear up behind recorders that were killed, add our rules, turn recording on.

        Args:
            wanted: Names of events.
            all_opens: Files that are opened only for reading count, too.

        Raises:
            PrivilegeError: This user may not.
            KcapError: The kernel refuses a rule.
        """
        found = self._control.rules()
        owners = [(rule, rules.owner(rule)) for rule in found]
        self.foreign = [rule for rule, key in owners if key is None]
        if self.before.enabled >= _LOCKED:
            self.refused = "this host's audit rules are locked until it starts anew (enabled 2)"
        elif self.before.failure >= _PANIC:
            self.refused = "this host panics when a record is lost (failure 2): nothing is added"
        if self.refused:
            return
        # What the first of several recorders found is what the last one has to restore.
        first = next((key for _, key in owners if key is not None), None)
        self._key = Key(
            os.getpid(),
            rules.started(os.getpid()) or 0,
            first.enabled if first else self.before.enabled,
            first.backlog_limit if first else self.before.backlog_limit,
            first.backlog_wait_time if first else self.before.backlog_wait_time,
        )
        before = {key.text for _, key in owners if key is not None and key.alive}
        self.keys = frozenset({self._key.text, *before})
        for rule in rules.rules(wanted, self._key.text, all_opens=all_opens):
            self._control.add(rule)
            self.added += 1
        for rule, key in owners:
            if key is not None and not key.alive:
                self._control.delete(rule)
        changes = {}
        if not self.before.enabled:
            changes["enabled"] = 1
        if self.before.backlog_limit < BACKLOG:
            changes["backlog_limit"] = BACKLOG
        if self.before.backlog_wait_time > 0 and not self.before.pid:
            changes["backlog_wait_time"] = 0  # better that we lose events than that the host waits
        if changes:
            self._control.set(**changes)

    def status(self) -> Status:
        """How the audit system is now.

        Raises:
            PrivilegeError: This user may not ask.
            KcapError: The kernel gives no answer.
        """
        return self._control.status()

    def mark(self) -> None:
        """Have the kernel make a record, whose number tells how many events there were before.

        Raises:
            PrivilegeError: This user may not any more.
            KcapError: The kernel gives no answer.
        """
        if self._key is not None:
            self._control.set(backlog_limit=self._control.status().backlog_limit)

    def restore(self) -> None:
        """Take our rules away and put the settings back; may be called twice.

        What others have changed meanwhile stays as they want it: an audit daemon that has come
        keeps the recording on, and a limit that is no longer ours stays.

        Raises:
            PrivilegeError: This user may not any more.
            KcapError: The kernel gives no answer.
        """
        key, self._key = self._key, None
        if key is None:
            return
        for rule in self._control.rules():
            if rules.key_of(rule) == key.text:
                self._control.delete(rule)
        if any(self._others()):
            return
        now, changes = self._control.status(), {}
        if not key.enabled and now.enabled == 1 and not now.pid:
            changes["enabled"] = 0
        if now.backlog_limit == BACKLOG and key.backlog_limit < BACKLOG:
            changes["backlog_limit"] = key.backlog_limit
        if now.backlog_wait_time == 0 and key.backlog_wait_time > 0:
            changes["backlog_wait_time"] = key.backlog_wait_time
        if changes:
            self._control.set(**changes)

    def _others(self) -> Iterator[Key]:
        """Other recorders that still run."""
        for rule in self._control.rules():
            key = rules.owner(rule)
            if key is not None and key.alive:
                yield key
