"""The learning report and its page."""
