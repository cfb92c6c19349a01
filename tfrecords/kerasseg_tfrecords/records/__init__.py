"""Records, shards and their manifest."""
