"""What CHANGELOG.md and README.md say of the catalogue is what is registered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from grpolab.component import MODULES, NESTED, names, outside

ROOT = Path(__file__).parents[1]
CATALOGUE = (
    (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("**The catalogue**")[1]
    .partition("\n- ")[0]
)  # fmt: skip
COUNTED = {
    "advantages": "advantage", "policy losses": "clip", "token masks": "mask",
    "KL estimators": "kl", "references": "reference", "aggregations": "aggregation",
    "selections": "selection", "corrections": "correction", "rewards": "reward",
    "samplers": "sampler",
}  # fmt: skip
"""What the changelog calls a group's choices."""
CHOICES = {
    cells[1].strip(" `"): re.split(r",\s*", cells[2].strip())
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    if len(cells := re.split(r"(?<!\\)\|", line)) == 5 and cells[1].strip(" `") in MODULES
}
"""The table of the README: {group: its choices}."""


def own(group: str) -> list[str]:
    """The package's choices, without those of whatever else is installed here."""
    return [name for name in names(group) if name not in outside(group)]


@pytest.mark.parametrize("said", list(COUNTED))
def test_the_changelog_counts_what_is_registered(said: str) -> None:
    found = re.findall(rf"(\d+)\s+{said}", CATALOGUE)
    assert found == [str(len(own(COUNTED[said])))]


@pytest.mark.parametrize("group", [g for g in MODULES if g not in NESTED])
def test_the_readme_lists_what_is_registered(group: str) -> None:
    assert sorted(CHOICES[group]) == own(group)
