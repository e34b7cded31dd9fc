"""Where events come from: captures, foreign files, live sources."""
