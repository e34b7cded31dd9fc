"""Filaments: Python that looks at events, in a process of its own."""
