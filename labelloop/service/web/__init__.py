"""Web apps: the application factory, gunicorn, metrics, and webhook secrets."""
