"""Records, class map, file names, splits, and accounting of a data set."""
