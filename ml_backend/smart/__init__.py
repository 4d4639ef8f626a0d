"""Smart tools: turn an annotator's box or clicks into a tight box, a polygon or a brush mask."""

from ml_backend.smart.controls import serves_smart_tools
from ml_backend.smart.tools import SmartTools

__all__ = ["SmartTools", "serves_smart_tools"]
