"""Regions: what an annotation says about its images, read from Label Studio's results and written back."""

from labelloop.labeling.errors import RegionError
from labelloop.labeling.region import Reading, Region
from labelloop.labeling.studio.reading import read_annotation, regions
from labelloop.labeling.studio.writing import detection_result, to_results

__all__ = ["Reading", "Region", "RegionError", "detection_result", "read_annotation", "regions", "to_results"]
