"""Records of moment data sets and readers of their official formats."""
