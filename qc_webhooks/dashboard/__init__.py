"""Dashboard of quality control: server-rendered pages behind a log-in."""

from qc_webhooks.dashboard.views import DashboardPaths, add_dashboard

__all__ = ["DashboardPaths", "add_dashboard"]
