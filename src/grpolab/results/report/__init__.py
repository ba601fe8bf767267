"""One page per sweep: a single HTML file that needs no network, `grpolab report sweep=latest`."""

from grpolab.results.report.page import report

__all__ = ["report"]
