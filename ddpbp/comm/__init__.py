"""The ranks, and how their sums meet."""
