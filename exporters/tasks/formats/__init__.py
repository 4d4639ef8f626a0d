"""The formats of tasks: each encodes a line and writes its files."""
