"""The training loop and everything that happens beside a step."""
