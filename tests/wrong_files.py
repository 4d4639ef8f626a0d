"""Files that are given for an export of tasks and are none: every command that reads tasks names them alike."""

WRONG_FILES = {  # what it holds, and a word of what is said
    "nothing": (b"", "empty"),
    "blanks": (b" \n", "empty"),
    "csv": (b"annotation_id,image\n1,s3://b/x.jpg\n", "no JSON"),
    "zip": (b"PK\x03\x04\x14\x00", "zip"),
    "gzip": (b"\x1f\x8b\x08", "gzip"),
    "utf-16": ("[]".encode("utf-16"), "UTF-16"),
    "web page": (b"<!DOCTYPE html><html>", "web page"),
    "json-min": (b'[{"id": 1, "image": "s3://b/x.jpg", "annotator": 1, "annotation_id": 3, "label": []}]', "JSON-MIN"),
    "coco": (b'{"images": [], "annotations": [], "categories": []}', "labelloop import"),
    "coco results": (b'[{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "score": 0.5}]', "labelloop import"),
    "an object of the target storage": (b'{"id": 3, "result": [], "task": {"id": 1}}', "folder"),
}
