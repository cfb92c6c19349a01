"""Export of a run's network as SavedModel, ONNX, LiteRT or Keras file, compared with the original, with a model card."""
