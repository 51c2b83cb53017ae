"""A model that makes pictures from nothing as a prior for restoring them: see `palette_ms.priors.chain`."""
