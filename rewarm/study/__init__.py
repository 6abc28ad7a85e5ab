"""Studies of several arms: running them, and what their losses show."""
