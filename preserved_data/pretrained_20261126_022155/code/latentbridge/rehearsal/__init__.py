"""Proves on tiny models, before a GPU hour is spent, that a run computes what its config says."""
