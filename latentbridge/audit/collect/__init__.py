"""One tidy table of any mixture of our runs and the files of the published systems."""
