"""Commands of the ML backend."""
