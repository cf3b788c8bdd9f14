"""Scores: average precision in any dimension, moments, highlights."""
