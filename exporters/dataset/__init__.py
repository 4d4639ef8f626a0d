"""Data set versions in a store: publish, pull, compare, and collect garbage."""
