"""One task from reading to writing: read, judge, plan, write; reconciliation; undo."""
