"""Raw MRI slices -> leak-free split -> TFRecord shards -> records. Knows nothing of Keras."""

from kerasseg_tfrecords._version import __version__

__all__ = ["__version__"]
