"""Summaries and reports of projects."""
