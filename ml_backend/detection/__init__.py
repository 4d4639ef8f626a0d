"""Detections, preprocessing, masks, class names and box voting."""
