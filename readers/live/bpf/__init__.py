"""The recorder of Linux hosts: one BPF object, its loader, and what turns its records to events."""
