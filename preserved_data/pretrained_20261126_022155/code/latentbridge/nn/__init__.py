"""Tensors in, tensors out: building blocks that know nothing of runs, files or ranks."""
