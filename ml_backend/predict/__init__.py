"""From tasks to Label Studio predictions."""
