"""From slices to shards: read, stage, assign to splits, write."""
