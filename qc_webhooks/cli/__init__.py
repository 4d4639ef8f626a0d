"""Commands of quality control."""
