"""Compact sets and arrays."""
