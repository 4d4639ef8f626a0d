"""The connection of a project in Label Studio to quality control."""
