"""Recognise and decode the outputs of ONNX detectors: `LAYOUTS` lists every supported layout.

To add a layout, write a recogniser and a reader in the file of its family, and add one line to `LAYOUTS`. Both receive
the graph and the outputs of a trial run on a grey image, which resolve open dimensions and ambiguous shapes.
"""

from collections.abc import Mapping

from ml_backend.layouts.anchors import YOLOV5_HEADS
from ml_backend.layouts.base import Layout, OutputReader, best_class, image_size, plain_spec
from ml_backend.layouts.classify import CLASSIFIER, CLASSIFY
from ml_backend.layouts.dbnet import DBNET
from ml_backend.layouts.detr import DETR_SIGMOID, DETR_SOFTMAX, RF_DETR
from ml_backend.layouts.end2end import END2END, RTDETR_ULTRALYTICS
from ml_backend.layouts.faces import BLAZEFACE, PALM, RETINAFACE, SCRFD, ULTRAFACE, YOLOV5_FACE, YUNET
from ml_backend.layouts.fastestdet import FASTESTDET
from ml_backend.layouts.gfl import NANODET, NANODET_SINGLE, PICODET
from ml_backend.layouts.labelloop import LABELLOOP
from ml_backend.layouts.mmdeploy import MMDEPLOY
from ml_backend.layouts.nms import SPELLED_COLUMNS, TENSORRT_NMS, YOLOV7_END2END
from ml_backend.layouts.postprocessed import PADDLE, RT_DETR, SSD, TF_OD, TFLITE_DETECTION, TORCHVISION
from ml_backend.layouts.raw_heads import YOLO_FASTESTV2, YOLOV8_HEADS
from ml_backend.layouts.semantic import SEMANTIC
from ml_backend.layouts.ultralytics import YOLOV5, YOLOV8
from ml_backend.layouts.yolox import YOLOX, YOLOX_DECODED, yolox_grid

__all__ = ["LAYOUTS", "Layout", "OutputReader", "best_class", "image_size", "plain_spec", "yolox_grid"]

# Layout by name, in order of recognition: the first that recognises a graph decodes it.
LAYOUTS: Mapping[str, Layout] = {
    "labelloop": LABELLOOP,
    "spelled-columns": SPELLED_COLUMNS,
    "classify": CLASSIFY,
    "end2end": END2END,
    "yolov8": YOLOV8["detect"],
    "yolov8-segment": YOLOV8["segment"],
    "yolov8-pose": YOLOV8["pose"],
    "yolov8-obb": YOLOV8["obb"],
    "rt-detr-ultralytics": RTDETR_ULTRALYTICS,
    "yolov5": YOLOV5,
    "yolov5-face": YOLOV5_FACE,
    "yolov5-heads": YOLOV5_HEADS,
    "yolov8-heads": YOLOV8_HEADS,
    "yolo-fastestv2": YOLO_FASTESTV2,
    "yolov7-end2end": YOLOV7_END2END,
    "tensorrt-nms": TENSORRT_NMS,
    "nanodet": NANODET,
    "nanodet-single": NANODET_SINGLE,
    "picodet": PICODET,
    "yolox": YOLOX,
    "yolox-decoded": YOLOX_DECODED,
    "fastestdet": FASTESTDET,
    "ultraface": ULTRAFACE,
    "retinaface": RETINAFACE,
    "scrfd": SCRFD,
    "yunet": YUNET,
    "blazeface": BLAZEFACE,
    "mediapipe-palm": PALM,
    "dbnet": DBNET,
    "mmdeploy": MMDEPLOY,
    "rf-detr": RF_DETR,
    "detr-softmax": DETR_SOFTMAX,
    "detr-sigmoid": DETR_SIGMOID,
    "rt-detr": RT_DETR,
    "tf-od": TF_OD,
    "tflite-detection": TFLITE_DETECTION,
    "paddle": PADDLE,
    "ssd": SSD,
    "torchvision": TORCHVISION,
    "semantic": SEMANTIC,
    "classifier": CLASSIFIER,
}
