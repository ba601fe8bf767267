"""Policy losses that read the whole optimizer step before any token's loss is known."""
