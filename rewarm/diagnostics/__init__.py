"""`rewarm doctor`: what is known about this machine, and what is wrong with it."""
