"""One thread (the models here are tiny), and what tests/policy shares."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "policy"))
torch.set_num_threads(1)
