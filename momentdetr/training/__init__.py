"""The training loop, shared by retrieval and detection; knows neither task."""
