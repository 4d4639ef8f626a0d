"""Learning in service: from a submit in Label Studio to a judged and served model, and the order of the tasks."""
