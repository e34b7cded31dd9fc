"""kcap: capture and replay of host telemetry."""

from __future__ import annotations

__version__ = "0.1.0"
