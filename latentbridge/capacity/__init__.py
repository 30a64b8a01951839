"""The capacity bench: what a limit on an expert's load drops, and what seating tokens under it costs."""
