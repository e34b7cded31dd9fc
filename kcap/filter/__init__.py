"""The filter language: `kcap.filter.fields` is its catalogue of fields."""
