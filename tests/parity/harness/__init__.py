"""TRL's trainer and ours on the same recorded completions."""
