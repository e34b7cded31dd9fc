"""The catalogue of fields as data: tab-separated tables."""
