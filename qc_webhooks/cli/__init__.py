"""Command-line interface of quality control."""
