"""From shards and arrays to augmented batches."""
