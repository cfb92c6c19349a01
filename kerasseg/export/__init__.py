"""Networks of runs for other people's software: SavedModel, ONNX, LiteRT, Keras; compared, and with a model card."""

from kerasseg.export.export_run import Exported, export_model
from kerasseg.export.schema import ExportMetadata, read_metadata

__all__ = ["ExportMetadata", "Exported", "export_model", "read_metadata"]
