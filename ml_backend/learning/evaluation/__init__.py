"""Whether a candidate version is better than the one that serves."""
