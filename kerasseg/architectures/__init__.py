"""Networks that kerasseg builds itself, with new weights."""
