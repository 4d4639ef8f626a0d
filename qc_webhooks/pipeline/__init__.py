"""Pipeline of a task: read, judge, plan, write; reconciliation; undo."""
