"""Filaments that come with kcap: each is a file that a filament worker runs."""
