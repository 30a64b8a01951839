"""What may be said from a handful of seeds and some hundred questions, each method by its name."""
