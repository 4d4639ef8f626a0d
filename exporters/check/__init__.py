"""`labelloop dataset check`: twins by look, leaky splits, class balance, and odd boxes of any data set."""
