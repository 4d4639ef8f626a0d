"""Active learning: train on submitted annotations, evaluate and publish versions, rank the open tasks."""
