"""Looking for indicators of compromise in captures."""
