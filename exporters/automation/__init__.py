"""Automatic exports: policy, triggers, state of each watched project, and notification of published versions."""
