"""GRPO Lab: compose, sweep, log and compare variants of GRPO."""

from __future__ import annotations

from grpolab.component import ConfigError, component

__all__ = ["ConfigError", "component"]
__version__ = "0.1.0"
