"""The catalogue as data: tab-separated tables."""
