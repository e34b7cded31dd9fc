"""Artifacts of a live host: executed and written files, streams, memory, modules, programs."""
