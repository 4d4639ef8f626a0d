"""One annotation from several: clustering, annotator models, box fusion, and label voting."""
