"""Small language models from scratch on generated problems: the pair that the translator is tried on."""
