"""Training: the compiled step, the loop, the log."""
