"""What a recorder asks of its program in the kernel while it runs, wherever the rights for it are.

Records come through memory that the kernel shares with us, for which nobody needs rights. Counters
have to be asked for with bpf(2). So that the process that works on events can do without, these few
questions go as bytes to the process that has kept its rights, or stay in this one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kcap.errors import KcapError
from kcap.readers.live.bpf import events, hooks
from kcap.readers.live.bpf.hooks import Hook, Symbols
from kcap.readers.live.bpf.program import COUNT, KernelProgram

Ask = Callable[[str, bytes], bytes]


class Answers:
    """Answers for a program: the half that has the rights.

    Args:
        program: The program.
        layout: ``struct kcap_call`` as the program has it.
        symbols: The kernel's layout, None where it does not tell.
        readers: Gives the processes that read /proc for the recorder.
    """

    def __init__(
        self,
        program: KernelProgram,
        layout: np.dtype[np.void],
        symbols: Symbols | None,
        readers: Callable[[], Collection[int]],
    ) -> None:
        self._program = program
        self._layout = layout
        self._symbols = symbols
        self._readers = readers
        self._own: tuple[int, ...] = (os.getpid(),)
        self.own()

    def serve(self, name: str, argument: bytes) -> bytes:
        """Answer a question.

        Args:
            name: What is asked: one of the methods of `Asked`.
            argument: What stands with it.

        Returns:
            The answer, which `Asked` reads.

        Raises:
            KcapError: The kernel refused, or there is no such question.
        """
        program = self._program
        if name == "counts":
            return program.counts().tobytes()
        if name == "own":
            self.own()
            return b""
        answers: dict[str, Callable[[], Any]] = {
            "alive": program.alive,
            "attach": lambda: program.attach_calls(self._layout),
            "attached": lambda: program.attached,
            "broken": program.broken,
            "detach": program.detach,
            "hooks": self._hooks,
            "passed_over": program.passed_over,
            "victims": lambda: [[*key, count] for key, count in program.victims().items()],
        }
        if name not in answers:
            raise KcapError(f"the recorder's program has no answer to {name!r}")
        return json.dumps(answers[name]()).encode()

    def own(self, pids: Sequence[int] | None = None) -> None:
        """Leave the recorder's processes out, those who read /proc for it included.

        Args:
            pids: The others; None for those that were named last, where the readers have changed.
        """
        if pids is not None:
            self._own = tuple(pids)
        self._program.own([*self._own, *sorted(self._readers())])

    def _hooks(self) -> list[Hook] | None:
        return None if self._symbols is None else hooks.hooks(self._program.peek, self._symbols)


class Asked:
    """Asks: the half that may have no rights.

    Args:
        ask: Takes a question to `Answers.serve`.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def counts(self) -> npt.NDArray[np.void]:
        """See `KernelProgram.counts`."""
        found = np.frombuffer(self._ask("counts", b""), COUNT)
        assert len(found) == events.EVENTS, len(found)
        return found

    def victims(self) -> dict[tuple[int, int, int], int]:
        """See `KernelProgram.victims`."""
        rows: list[list[int]] = self._said("victims")
        return {(row[0], row[1], row[2]): row[3] for row in rows}

    def passed_over(self) -> dict[str, int]:
        """See `KernelProgram.passed_over`."""
        return dict(self._said("passed_over"))

    def hooks(self) -> list[Hook] | None:
        """See `kcap.readers.live.bpf.hooks.hooks`; None also where the kernel hides its layout."""
        found: list[Sequence[Any]] | None = self._said("hooks")
        return None if found is None else [Hook(*each) for each in found]

    def alive(self) -> int:
        """See `KernelProgram.alive`."""
        return int(self._said("alive"))

    def attached(self) -> list[str]:
        """See `KernelProgram.attached`."""
        return list(self._said("attached"))

    def broken(self) -> list[str]:
        """See `KernelProgram.broken`."""
        return list(self._said("broken"))

    def own(self) -> None:
        """See `Answers.own`: other processes read /proc now."""
        self._ask("own", b"")

    def attach(self) -> None:
        """See `KernelProgram.attach_calls`."""
        self._said("attach")

    def detach(self) -> None:
        """See `KernelProgram.detach`."""
        self._said("detach")

    def _said(self, name: str) -> Any:  # noqa: ANN401
        return json.loads(self._ask(name, b""))
