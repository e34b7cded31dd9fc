"""The events of processes in the forms of other tools: forkstat's and execsnoop's."""
