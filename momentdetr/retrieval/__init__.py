"""Moment retrieval: the family with D = 1, conditioned on text."""
