"""The web service of the ML backend."""
