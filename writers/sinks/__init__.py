"""Sinks over a network: rendered in the pipeline, delivered by a process of their own."""
