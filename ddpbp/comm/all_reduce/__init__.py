"""all_reduce."""
