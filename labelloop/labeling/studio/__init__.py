"""Label Studio's JSON: label configs, tasks, results, and their values, read and written."""
