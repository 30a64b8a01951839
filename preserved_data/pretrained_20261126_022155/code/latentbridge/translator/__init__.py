"""Frozen source model -> trained bridge -> soft tokens of a frozen target model."""
