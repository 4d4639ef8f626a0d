"""The database: engine, migrations, and dialect differences between SQLite and Postgres."""
