"""Keras 2 layers and TensorFlow operations as Keras 3 layers."""
