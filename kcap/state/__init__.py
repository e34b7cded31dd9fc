"""State: what a machine looked like at any row of a stream."""

from kcap.state.processes import Process, process_key
from kcap.state.state import State

__all__ = ["Process", "State", "process_key"]
