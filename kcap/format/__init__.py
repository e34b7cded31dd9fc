"""The ``.kcap`` file: records, chunks, writer and reader (spec/kcap.md)."""
