"""Rewards in a real run: what they read, what is logged, and when too much is unscorable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.end_to_end import launching
else:
    import launching

# sampler.max_new_tokens is 16, and the gold answers are numbers.
PARTS = (
    "{sums: {name: math_verify, plain: true, anchored: false, candidates: any},"
    " long: {name: soft_overlong, cache: 8, weight: 0.5}, cosine: {name: cosine_length},"
    " again: {name: repetition, n: 1, of: tokens},"
    " in: {name: mixture, weight: 0, parts: {words: {name: repetition, n: 1}}}}"
)


def test_every_part_is_scored_and_logged(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    launching.train(
        "reward=mixture", f"reward.parts={PARTS}", "steps=2", "tracking=jsonl", "study=parts",
        f"output_dir={tmp_path}", cwd=tmp_path,
    )  # fmt: skip
    (folder,) = launching.run_folders(tmp_path / "parts")
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        step = json.loads(line)
        if "reward/mean" not in step:
            continue
        assert step["reward/unscorable_share"] == 0
        weighted = step["reward/sums"] + 0.5 * step["reward/long"] + step["reward/cosine"]
        assert step["reward/mean"] == pytest.approx(weighted + step["reward/again"], abs=1e-5)
        assert step["reward/in"] == step["reward/in/words"]
        assert 0 <= step["reward/sums"] <= 1
        assert -1 <= step["reward/long"] <= 0


def test_too_much_that_is_unscorable_ends_the_run(tmp_path: Path) -> None:
    done = launching.grpolab(
        "train", *launching.SMALL, "reward=choice", "steps=2", "tracking=jsonl", "study=letters",
        f"output_dir={tmp_path}", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    (folder,) = launching.run_folders(tmp_path / "letters")
    status = launching.status(folder)
    assert status["state"] == "failed"
    assert "100% of a batch's samples were unscorable" in status["reason"]


def test_a_length_out_of_reach_is_refused(tmp_path: Path) -> None:
    done = launching.called(
        "train", *launching.SMALL, "reward=mixture",
        "reward.parts={a: {name: soft_overlong, cache: 17}}", f"output_dir={tmp_path / 'out'}",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "reward.parts.a.cache: 17 given with sampler.max_new_tokens=16" in done.stderr
    assert not (tmp_path / "out").exists()
