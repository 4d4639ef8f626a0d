"""Fixtures of the system tests: real parts, one module each."""

from tests.system.studio_fixtures import label_studio, label_studio_installation

__all__ = ["label_studio", "label_studio_installation"]
