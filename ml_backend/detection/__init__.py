"""Detections and what is done with them: preprocessing, masks, class names, box voting."""
