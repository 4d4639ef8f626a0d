"""`labelloop import`: data sets that are labelled already become a Label Studio project, shape by shape."""
