"""Image data sets: reading, checking, converting, augmenting."""
