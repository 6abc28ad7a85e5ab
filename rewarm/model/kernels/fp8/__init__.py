"""Linear layers in 8 bits: scales, rounding, and the matmuls in Triton and in plain PyTorch."""
