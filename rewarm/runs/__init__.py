"""A run on disk, and everything it needs before it can start."""
