"""Advantages for each token: [N, T]."""
