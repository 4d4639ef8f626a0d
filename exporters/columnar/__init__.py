"""Objects of many tasks at once, as columns of numbers and text."""
