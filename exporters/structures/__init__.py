"""Compact sets and arrays of integers."""
