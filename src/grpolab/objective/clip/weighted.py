"""Policy losses whose weight is detached, and soft ones."""
