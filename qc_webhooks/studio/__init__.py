"""Connects a Label Studio project to quality control."""
