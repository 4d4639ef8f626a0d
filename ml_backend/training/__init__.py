"""From frozen features to a linear head, its calibration, and an ONNX file."""
