"""What is wrong with this installation, in plain words, with the fix: the table of checks and how it is run."""
