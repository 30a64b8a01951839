"""Two cells beside each other: what seeds tell, what shared questions tell, and what a peak hides."""
