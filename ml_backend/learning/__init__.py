"""Learning in service: from a submit in Label Studio to a judged, served model and the order of the tasks that follow."""
