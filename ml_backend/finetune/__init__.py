"""Fine-tune an ONNX detector on a project's labels and write it back as the same graph; needs the extra `[train]`.

`graph` and `classes` edit ONNX alone; `convert`, `losses`, `loop` use torch and are imported only once it is found.
"""
