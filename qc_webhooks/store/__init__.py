"""Database tables of quality control."""
