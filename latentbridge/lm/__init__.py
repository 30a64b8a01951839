"""Small decoder language models on a text: what all workloads that train one have in common."""
