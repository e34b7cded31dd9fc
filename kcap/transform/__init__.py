"""Transformers: what becomes of events before a sink gets them."""
