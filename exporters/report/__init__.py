"""`labelloop dataset report`: a version as one self-contained HTML page."""
