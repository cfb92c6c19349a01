"""Open U-Net checkpoints from any source as native Keras 3 networks, without running anything in them."""
