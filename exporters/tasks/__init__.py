"""Data sets of tasks: one line per task, for projects of any kind, and the formats made of these lines."""
