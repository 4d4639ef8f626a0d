"""From a task to records of images and objects."""
