"""`read_regions`: the shapes of an annotation that must have no fault."""

from labelloop.labeling.studio.reading import read_annotation


def read_regions(source, **context):
    """The shapes of an annotation, all or none: the first malformed result is raised. Arguments: `read_annotation`."""
    reading = read_annotation(source, **context)
    if reading.errors:
        raise reading.errors[0]
    return reading.regions
