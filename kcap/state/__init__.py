"""What is known at a moment of the stream: processes, and what else is tracked."""
