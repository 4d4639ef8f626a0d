"""Artifacts of quality control in Label Studio besides task fields: overlays and review copies."""
