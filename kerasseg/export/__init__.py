"""Export of a run's network as SavedModel, ONNX, LiteRT or Keras file, compared with the original, with a model card."""

from kerasseg.export.export_run import Exported, export_model
from kerasseg.export.schema import ExportMetadata, read_metadata

__all__ = ["ExportMetadata", "Exported", "export_model", "read_metadata"]
