"""Schedules and losses as pictures, in files and in the terminal."""
