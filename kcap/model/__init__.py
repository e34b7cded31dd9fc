"""The model: events as columns, their names, classes, shapes and texts."""
