"""Training on ModelArts: the boot file's work there, and submitting a job from here."""
