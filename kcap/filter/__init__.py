"""The filter language: parser, fields, columnar engine, row interpreter (docs/filters.md)."""

from kcap.filter.errors import FilterError
from kcap.filter.filter import Filter

__all__ = ["Filter", "FilterError"]
