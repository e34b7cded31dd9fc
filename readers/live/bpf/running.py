"""A program of ours while it is in the kernel: what the recorder's and its companions' share."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final

from kcap.readers.live.bpf.btf import Btf
from kcap.readers.live.bpf.links import Links
from kcap.readers.live.bpf.loader import Loaded, Map

OWN: Final = 16
"""``KCAP_OWN``: so many processes may be the recorder's."""


class Running:
    """A loaded object whose programs are attached one by one.

    Args:
        loaded: What the kernel holds.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._links = Links(loaded.links)

    @property
    def types(self) -> Btf:
        """The structures of its records."""
        return self._loaded.object.btf

    @property
    def maps(self) -> Mapping[str, Map]:
        """Its maps, by name; another object may share them."""
        return self._loaded.maps

    @property
    def unavailable(self) -> tuple[str, ...]:
        """Fields of kernel structures that this kernel does not have."""
        return self._loaded.unavailable

    @property
    def refused(self) -> dict[str, str]:
        """Parts that this kernel did not take, and why."""
        return self._loaded.refused

    @property
    def attached(self) -> list[str]:
        """The parts that run."""
        return sorted(self._loaded.links)

    def own(self, pids: Sequence[int]) -> None:
        """Leave the recorder's own processes out from now on, instead of those named before.

        Args:
            pids: The processes, as the initial namespace numbers them. The program has room for
                `OWN`: of those behind, which do little or nothing, events come.

        Raises:
            KcapError: The kernel refused.
        """
        padded = [*pids, *([0] * OWN)][:OWN]
        self.maps["own"].set(0, struct.pack(f"={OWN}I", *padded))

    def broken(self) -> list[str]:
        """Parts that should run, and that somebody else has detached or keeps from running.

        Raises:
            KcapError: The kernel refused to count.
        """
        return self._links.broken()

    def detach(self) -> None:
        """See nothing more; what the rings hold can still be read."""
        for name in self.attached:
            self._loaded.detach(name)
