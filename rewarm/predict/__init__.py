"""Losses of runs that were never made, from a law that is fitted to the losses of other runs."""
