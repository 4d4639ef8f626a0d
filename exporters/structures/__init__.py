"""Compact sets and arrays of integers, and a table of classes."""
