"""Trackers: programs such as TensorBoard and W&B that a run sends its metrics to."""
