"""Alembic's migrations: run by `labelloop.service.db.engine.migrate`, packaged with the code."""
