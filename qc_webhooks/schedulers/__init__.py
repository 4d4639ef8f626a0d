"""Periodic recomputation of project summaries, annotator models, and ground truth."""
