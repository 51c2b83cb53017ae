"""Weights of PyTorch programs: their files, their names for the U-Net's tensors, their configs."""
