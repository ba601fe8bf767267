"""TRL's GRPOTrainer and our update, from the same weights and the same completions, end at the
same weights. README.md here has the table; `python tests/parity/table.py` writes it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

pytest.importorskip("trl", reason="parity needs the extra `parity`")

if TYPE_CHECKING:
    from tests.parity.harness.case import Case
    from tests.parity.harness.cases import CASES
    from tests.parity.harness.compare import Comparison
else:
    from harness.case import Case
    from harness.cases import CASES
    from harness.compare import Comparison

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # among TRL and Transformers
EQUAL = [case for case in CASES if not case.apart]
APART = [case for case in CASES if case.apart]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    gc.collect()
    gc.freeze()  # the trainer collects garbage at its end: not all of torch's modules each time
    yield tmp_path_factory.mktemp("parity")
    gc.unfreeze()


@pytest.mark.parametrize("case", EQUAL, ids=lambda case: case.name)
def test_float32(case: Case, folder: Path) -> None:
    gaps = Comparison(case, torch.float32, folder).gaps()
    assert gaps.parameters < 1e-5
    assert gaps.update < 1e-3
    assert gaps.gradient < 1e-4
    for name, (ours, theirs) in gaps.metrics.items():
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("case", EQUAL, ids=lambda case: case.name)
def test_float64(case: Case, folder: Path) -> None:
    comparison = Comparison(case, torch.float64, folder)
    gaps = comparison.gaps()
    assert gaps.parameters < 1e-11
    assert gaps.update < 1e-9
    assert gaps.gradient < 1e-11
    for name, (ours, theirs) in gaps.metrics.items():  # logged as float32
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-7), name
    for name in case.metrics:
        assert gaps.metrics[name][0] > 0
    assert comparison.gaps_when_off().moved > 1e-3


@pytest.mark.parametrize("case", APART, ids=lambda case: case.name)
def test_explained_differences_are_there(case: Case, folder: Path) -> None:
    assert Comparison(case, torch.float32, folder).gaps().moved > 1e-2


def test_ratios_leave_the_clip_range(folder: Path) -> None:
    gaps = Comparison(EQUAL[0], torch.float32, folder).gaps()
    assert min(gaps.metrics["clip/low"]) > 0.02
    assert min(gaps.metrics["clip/high"]) > 0.02
