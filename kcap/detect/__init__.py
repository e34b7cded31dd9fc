"""Detections: rules over events, live and from files, with the same alerts."""
