"""A spec to its cells: every run there is, validated, with every mistake told in one go."""
