"""Networks that kerasseg builds itself, with fresh weights."""
