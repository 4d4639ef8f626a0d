"""ONNX Runtime sessions, the session cache, the detector and sliced inference."""
