"""Rights: what a process gives up, and processes of kcap that have few."""
