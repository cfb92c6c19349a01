"""Networks of runs for other people's software: SavedModel, ONNX, LiteRT, Keras; compared, and with a model card."""

from kerasseg.export.document import ExportMetadata, read_metadata
from kerasseg.export.exporting import Exported, export_model

__all__ = ["ExportMetadata", "Exported", "export_model", "read_metadata"]
