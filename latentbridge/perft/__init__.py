"""Adapters beside the experts of a frozen mixture (PERFT, arXiv 2411.08212), and a small mixture for them."""
