"""The passes of a layer that move the most memory, in Triton and in plain PyTorch."""
