"""Database tables of learning."""
