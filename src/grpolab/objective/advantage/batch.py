"""Advantages from the statistics of the whole batch."""
