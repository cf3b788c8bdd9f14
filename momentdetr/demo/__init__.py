"""The embedded default: the moving-shapes world and a small retriever that knows only it."""
