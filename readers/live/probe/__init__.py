"""Reads of /proc that nobody can stall: in a process that is killed when one hangs.

The arguments of a process are in its memory, and that can be made so that whoever reads it waits
for ever: a page that userfaultfd holds back, a file of a FUSE server that stopped answering. So a
process of its own reads (`kcap.readers.live.probe.reader`), another one kills it when it is late
and starts the next (`kcap.readers.live.probe.supervisor`), and the recorder goes on without that
one value (`kcap.readers.live.probe.client`).
"""

from kcap.readers.live.probe.client import LATE, Prober
from kcap.readers.live.probe.wire import Item, Op, Request

__all__ = ["LATE", "Item", "Op", "Prober", "Request"]
