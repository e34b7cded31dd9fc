"""The Linux audit system as a live source: its socket, its rules, its settings."""
