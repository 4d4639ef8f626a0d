"""Routes of a task after its verdict, and what they need to know."""
