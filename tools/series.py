"""What the files of a recording have in common: their names, and the host that they begin with."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO, Final

from kcap.errors import FullError, KcapError, OutputError
from kcap.model.batch import Batch
from kcap.model.side import Snapshot
from kcap.tools import logs

if TYPE_CHECKING:
    from kcap.state import State
    from kcap.tools.outputs import Outputs
    from kcap.tools.parts import Template

_TRIES: Final = 100
"""Names in a row that others may have taken."""


class Series:
    """The files of recordings that have a name in common, and a number each.

    Args:
        template: Their names.
        existing: Those that there are, with their numbers: new ones go on behind them.
        outputs: Creates and removes files.
        keep: How many stay; None for all.
    """

    def __init__(
        self,
        template: Template,
        existing: Sequence[tuple[int, str]],
        outputs: Outputs,
        keep: int | None = None,
    ) -> None:
        self._template = template
        self._outputs = outputs
        self._keep = keep
        self._files = deque(name for _, name in existing)
        """The oldest first."""
        self._next = max((number for number, _ in existing), default=0) + 1

    def create(self) -> tuple[int, str, BinaryIO]:
        """Create the next file: who records into the same names at the same time gets others.

        Returns:
            Its number, its name, and a stream without a buffer.

        Raises:
            FullError: There is no room.
            OutputError: It can't be created.
        """
        number = self._next
        while True:
            name = self._template.name(number, "", time.time())
            try:
                return number, name, self._outputs.create(name)
            except FileExistsError as e:
                number += 1
                if number == self._next + _TRIES:
                    raise OutputError("the output exists already", file=name) from e
            except FullError:
                if not self.free():
                    raise

    def drop(self, name: str) -> None:
        """Remove a file that was created and can't be used.

        Args:
            name: The file.
        """
        self._outputs.remove(name)

    def add(self, number: int, name: str) -> None:
        """Take note of a file that is begun, and remove the oldest beyond those that stay.

        Args:
            number: Its number.
            name: Its name.
        """
        self._next = number + 1
        self._files.append(name)
        while self._keep is not None and len(self._files) > self._keep and self.free():
            pass

    def free(self) -> bool:
        """Remove the oldest file, where files may go; never the last, which may be open.

        Returns:
            True where there was one.
        """
        if self._keep is None or len(self._files) < 2:  # noqa: PLR2004
            return False
        try:
            self._outputs.remove(self._files.popleft())
        except KcapError as e:
            logs.tell(f"kcap: warning: {e}", level="warning")
        return True


class HostTables:
    """What a source says of the host beside what the state follows: each file begins with it."""

    def __init__(self) -> None:
        self._tables: dict[str, Batch] = {}

    def take(self, batch: Batch) -> None:
        """Take note of what comes with a batch.

        Args:
            batch: Events and side records.
        """
        for side in batch.before:
            if isinstance(side, Snapshot):
                self._tables.update(side.tables)

    def start(self, state: State) -> Snapshot:
        """What a file begins with.

        Args:
            state: The state there.

        Returns:
            All tables.
        """
        return Snapshot({**self._tables, **state.snapshot().tables})
