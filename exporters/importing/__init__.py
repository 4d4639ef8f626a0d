"""`labelloop import`: import labelled data sets into Label Studio projects."""
