"""Random overrides never end in a traceback; what the long fuzzing found stays refused.

The long one is experiments/robustness/fuzz.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from experiments.robustness.fuzz import check, commands, is_for_fuzzing

FOUND = {
    "glob in a deletion": ["-m", "~correction.kept=glob(*)"],
    "a number for a choice": ["debug=1"],
    "a number for an experiment": ["+experiment=3.5"],
    "an interval among values": ["+reward.cache=interval(0,1),0"],
    "a list for a choice that is taken away": ["~task=[]"],
    "a range among values": ["~hydra=1_000,range(1,4),true"],
    "a sweeper's parameters that are none": ["-m", "hydra.sweeper.params.seed=frozen"],
    "a pattern without a match": ["-m", "clip=glob(z*)"],
    "a sort among values": ["-m", "++clip.low=sort(3,1),1.0,int(1.5)"],
}


@pytest.mark.parametrize("case", list(FOUND))
@pytest.mark.parametrize("command", ["plan", "train"])
def test_what_fuzzing_found_is_refused(command: str, case: str) -> None:
    assert check(command, FOUND[case]) == 2


@settings(
    max_examples=10, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(st.sampled_from(["plan", "train"]), commands().filter(is_for_fuzzing))
def test_no_override_ends_in_a_traceback(command: str, words: list[str]) -> None:
    assert check(command, words) in (0, 2)


def test_what_is_accepted_is_seen_as_such(tmp_path: Path) -> None:
    assert check("plan", ["clip=ppo,cispo", "seed=0,1", "model=tiny"]) == 0
    assert check("train", ["kl=k3", "kl.beta=0.1"]) == 0
