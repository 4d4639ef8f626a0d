"""The exporters: annotated tasks become immutable versions of COCO, Pascal VOC and YOLO data sets."""
