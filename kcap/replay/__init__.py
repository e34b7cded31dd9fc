"""The one pipeline: source, clock, state, stages, sinks."""
