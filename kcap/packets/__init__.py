"""Packets: one frame batch for live and imported ones, what its headers say, and whose they are."""
