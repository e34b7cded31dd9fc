"""Where events go: captures, text, other formats."""
