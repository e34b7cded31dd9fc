"""What keeps a recorder from being a hole in the host that it watches."""
