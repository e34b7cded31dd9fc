"""Transformers: what becomes of events before a sink gets them."""

from __future__ import annotations

from kcap.transform.parsing import NAMES, About, parse, parse_text

__all__ = ["NAMES", "About", "parse", "parse_text"]
