"""Alembic's migrations: run by `labelloop.service.db.migrate`, packaged with the code."""
