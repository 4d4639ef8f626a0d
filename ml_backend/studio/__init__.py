"""The connection of a project in Label Studio to the ML backend."""
