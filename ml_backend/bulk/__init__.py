"""Pre-labelling a whole project."""
