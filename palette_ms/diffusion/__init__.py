"""The diffusion process: schedules, training loss (Algorithm 1), sampling (Algorithm 2)."""
