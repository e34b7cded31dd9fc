"""The host as it was when the recording began: everything that later events build upon."""

from kcap.readers.live.baseline.host_tables import TABLES, Baseline, take

__all__ = ["TABLES", "Baseline", "take"]
