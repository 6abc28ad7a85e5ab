"""The GPT-NeoX model: its architecture, layers and published checkpoints."""
