"""One training loop for every workload: engine, optimiser, checkpoints, ranks."""
