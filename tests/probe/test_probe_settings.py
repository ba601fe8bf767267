"""The probe beside less common settings: adapters, a cut vocabulary, bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from grpolab.probe.session import probe

if TYPE_CHECKING:
    from tests.probe.first_gradients import BASE, assert_same_gradients
else:
    from first_gradients import BASE, assert_same_gradients

ARMS = [["clip=ppo"], ["kl=k1", "kl.beta=0.3"]]
"""The second has a gradient at the reference, too."""


@pytest.mark.parametrize(
    ("words", "tolerance"),
    [
        (["model.lora={r: 2}"], 1e-5),
        (["sampler.top_k=5", "sampler.match_support=true"], 1e-5),
        (["hardware.dtype=bfloat16"], 2e-2),
        (["selection=replay", "clip=none"], 1e-5),
    ],
)
def test_first_gradient(words: list[str], tolerance: float, tmp_path: Path) -> None:
    found = probe(ARMS, overrides=[*BASE, *words], keep_gradients=True)
    assert_same_gradients(found, ARMS, tmp_path, None, *words, tolerance=tolerance)
    assert found.cosine.to_numpy()[0, 1] < 0.999
