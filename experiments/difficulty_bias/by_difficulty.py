"""Accuracy by difficulty of a study's finished runs, from their saved models.

    python experiments/difficulty_bias/by_difficulty.py study=difficulty_bias output_dir=outputs
        out=experiments/difficulty_bias

The difficulty of a sum is how many of its columns reach ten: each is a carry to remember or a
leading 1 to write, which the embedded model has been taught to forget. Every model, and the one
they all start from, answers the same prompts that no run trained on: PROMPTS of each difficulty,
SAMPLES at temperature 1 each, with the same sampling noise for all runs of a seed.
Writes `by_difficulty.csv` (arm, seed, tens, accuracy; arm `start` before training) and, with the
paired t test and Holm over arms and difficulties, `difficulty_verdicts.csv`.
"""

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from grpolab.cli.inspect import key_values
from grpolab.component import ConfigError
from grpolab.config import Run, bind_run
from grpolab.policy.policy import Encoder, Policy
from grpolab.probe.source import load_state, place_of
from grpolab.results import statistics
from grpolab.results.frames import ResultsError
from grpolab.results.load import load
from grpolab.sampling.base import Draw
from grpolab.tasks.arithmetic import Arithmetic, columns
from grpolab.tasks.base import Example, Task
from grpolab.training.collect import correctness, encode_examples, sample_rollouts

KEYS = {
    "study": "all runs of a study",
    "output_dir": "where the runs lie (outputs)",
    "out": "folder of both files",
}
PROMPTS, SAMPLES, STREAM = 256, 4, 7
START = "start"


def tens(example: Example) -> int:
    """How many columns of the sum reach ten."""
    return sum(total >= 10 for total in columns(example.meta["a"], example.meta["b"]))


def fresh_prompts(task: Task) -> dict[int, list[Example]]:
    """{difficulty: PROMPTS examples that are in no training set}, the same for every run."""
    assert isinstance(task, Arithmetic)
    trained = {example.prompt for example in task.load().train}
    rest = [example for example in task.everything() if example.prompt not in trained]
    random.Random(0).shuffle(rest)
    found: dict[int, list[Example]] = {}
    for example in rest:
        found.setdefault(tens(example), []).append(example)
    return {level: found[level][:PROMPTS] for level in sorted(found)}


def accuracies(run: Run, policy: Policy) -> dict[int, float]:
    """{difficulty: share of right samples}."""
    found = {}
    for level, examples in fresh_prompts(run.task).items():
        prompts = encode_examples(policy.encoder, examples)
        draw = Draw(run.seed, (STREAM, level), SAMPLES)
        texts = sample_rollouts(run.sampler, policy, prompts, draw).texts
        right = correctness(run.task, texts, [e for e in examples for _ in range(SAMPLES)])
        found[level] = float(np.mean(right))
    return found


def measured(study: str, output_dir: str) -> pd.DataFrame:
    """One row an arm, seed and difficulty; ResultsError where there are no such runs."""
    runs = load(study=study, output_dir=output_dir).runs
    rows: list[dict[str, object]] = []
    for number, found in enumerate(runs[runs["status"] == "done"].itertuples()):
        folder = Path(output_dir) / study / str(found.job_id)
        raw: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        run = bind_run(raw)
        encoder = Encoder(run.model)
        weights = {str(found.arm): folder}
        if number == 0:
            weights[START] = Path(encoder.path)
        for arm, place in weights.items():
            state = load_state(run, encoder, place_of(place), needs_reference=False)
            rows += [
                {"arm": arm, "seed": run.seed, "tens": level, "accuracy": share}
                for level, share in accuracies(run, state.policy).items()
            ]
    table = pd.DataFrame(rows)
    return table.sort_values(["arm", "tens", "seed"], ignore_index=True)


def judged(table: pd.DataFrame, baseline: str = "baseline") -> pd.DataFrame:
    """Each arm against the baseline in each difficulty: paired t over seeds, Holm over all rows."""
    values = {
        key: group.set_index("seed")["accuracy"].sort_index()
        for key, group in table.groupby(["arm", "tens"])
    }
    rows, compared = [], []
    for (arm, level), own in values.items():
        if arm in (START, baseline):
            continue
        base = values[baseline, level]
        seeds = own.index.intersection(base.index)
        found = statistics.paired(own.loc[seeds].to_numpy(), base.loc[seeds].to_numpy(), 0.95)
        compared.append(found.p)
        rows.append(
            {
                "arm": arm, "tens": level, "n": found.n, "mean": own.mean(),
                "baseline_mean": base.mean(), "delta": found.delta, "low": found.low,
                "high": found.high, "p": found.p,
            }
        )  # fmt: skip
    return pd.DataFrame(rows).assign(p_holm=statistics.holm(np.array(compared)))


def main(words: Sequence[str]) -> int:
    """Writes both tables; 2 and a sentence for what cannot be read."""
    try:
        given = key_values(words, KEYS)
        if given.keys() < {"study", "out"}:
            raise ConfigError("out: a study and a folder are needed")
        table = measured(given["study"], given.get("output_dir", "outputs"))
    except (ConfigError, ResultsError) as error:
        print(error, file=sys.stderr)
        return 2
    folder = Path(given["out"])
    table.to_csv(folder / "by_difficulty.csv", index=False, float_format="%.6f")
    verdicts = judged(table)
    verdicts.to_csv(folder / "difficulty_verdicts.csv", index=False)
    print(verdicts.round(4).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
