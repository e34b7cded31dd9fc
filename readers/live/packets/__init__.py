"""Packets of this host, beside what a recorder tells of it."""
