"""Settings: a file, the environment and the command line, merged."""
