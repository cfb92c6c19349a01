"""Turn shards and arrays into augmented batches."""
