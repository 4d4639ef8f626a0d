"""`labelloop dataset report`: a version as one page that a person reads, pictures and all."""
