"""Hyperparameter search: trials drawn by Optuna, each of them ordinary runs of a sweep."""
