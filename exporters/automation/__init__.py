"""Data sets by themselves: when a project is exported again, who is told, and what is started then."""
