"""Fixtures of the service tests: the database on each engine, the queue on each engine."""

from __future__ import annotations

import pytest

from labelloop.service.db.engine import open_database
from labelloop.service.settings import Settings


@pytest.fixture(params=["sqlite", "postgres"])
def database(request, tmp_path):
    """A migrated database, on SQLite and on a real Postgres."""
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    engine = open_database(Settings(home=tmp_path / "home", database_url=url))
    yield engine
    engine.dispose()


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def queue_settings(request, tmp_path) -> Settings:
    """Settings whose queue is on SQLite, on a real Redis or on a real Postgres."""
    url = "" if request.param == "sqlite" else request.getfixturevalue(f"{request.param}_url")
    return Settings(home=tmp_path / "home", queue_url=url)
