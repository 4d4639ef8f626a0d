"""The web service of quality control."""
