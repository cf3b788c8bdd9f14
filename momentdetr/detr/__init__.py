"""The DETR family in D dimensions. Knows tensors only; imports nothing else of the project."""
