"""Papers that fill themselves from results, name what is missing, and trace every number to its file."""
