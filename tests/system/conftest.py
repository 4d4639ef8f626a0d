"""Fixtures of the system tests: real parts, one module each."""

from tests.system.browser_fixtures import page
from tests.system.cloud_fixtures import azure_server, gcs_server
from tests.system.loop_fixtures import loop, people, photos, project
from tests.system.s3_fixtures import s3_server
from tests.system.studio_fixtures import label_studio, label_studio_installation
from tests.system.wheel_fixtures import installed

__all__ = [
    "azure_server",
    "gcs_server",
    "installed",
    "label_studio",
    "label_studio_installation",
    "loop",
    "page",
    "people",
    "photos",
    "project",
    "s3_server",
]
