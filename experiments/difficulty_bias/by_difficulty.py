"""Accuracy by difficulty of a study's finished runs, from their saved models.

    python experiments/difficulty_bias/by_difficulty.py out=experiments/difficulty_bias
        [study=difficulty_bias output_dir=outputs]

The difficulty of a sum is how many of its columns reach ten: each is a carry to remember or a
leading 1 to write, which the embedded model has been taught to forget. Every model, and the one
they all start from, answers the same prompts that no run trained on: PROMPTS of each difficulty,
SAMPLES at temperature 1 each, with the same sampling noise for all runs of a seed.
Writes `by_difficulty.csv` (arm, seed, tens, accuracy; arm `start` before training) and, with the
paired t test and Holm over arms and difficulties, `difficulty_verdicts.csv` and `difficulty.png`.
Without a study the table that lies in `out` is judged again.
"""

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from grpolab.cli.inspect import key_values
from grpolab.component import ConfigError
from grpolab.config import Run, bind_run
from grpolab.policy.policy import Encoder, Policy
from grpolab.probe.request import place_of
from grpolab.probe.source import load_state
from grpolab.results import statistics, style
from grpolab.results.frames import ResultsError
from grpolab.results.load import load
from grpolab.sampling.base import Draw
from grpolab.tasks.arithmetic import Arithmetic, columns
from grpolab.tasks.base import Example, Task
from grpolab.training.collect import correctness, encode_examples
from grpolab.training.draw import sample_rollouts

KEYS = {
    "study": "measure all runs of a study; without one, judge what was measured",
    "output_dir": "where the runs lie (outputs)",
    "out": "folder of the tables and the figure",
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


def draw(verdicts: pd.DataFrame) -> tuple[Figure, str]:
    """Each arm's difference to the baseline by difficulty, and the caption."""
    arms = list(dict.fromkeys(verdicts["arm"]))
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(style.SINGLE_COLUMN * 1.3, 2.3)
        axes = figure.subplots()
        axes.axhline(0, color="0.5", lw=0.7)
        for i, arm in enumerate(arms):
            rows = verdicts[verdicts["arm"] == arm]
            look = style.nth_style(i, arm)
            axes.errorbar(
                rows["tens"] + 0.12 * (i - (len(arms) - 1) / 2), rows["delta"],
                yerr=[rows["delta"] - rows["low"], rows["high"] - rows["delta"]],
                fmt=look.marker, color=look.colour, ms=4, lw=1.0, capsize=2, label=arm,
            )  # fmt: skip
        axes.set_xticks(sorted(set(verdicts["tens"])))
        axes.set_xlabel("Columns that reach ten (easy to hard)")
        axes.set_ylabel("Difference in accuracy")
        axes.legend(loc="best")
    caption = (
        "Accuracy of samples at temperature 1 by difficulty of the sum, as a difference to the "
        f"baseline's: means over {int(verdicts['n'].min())} paired seeds; bars: Student-t 95 % "
        f"interval of the mean, uncorrected; {PROMPTS} prompts a difficulty that no run trained "
        f"on, {SAMPLES} samples each."
    )
    return figure, caption


def main(words: Sequence[str]) -> int:
    """Writes the tables and the figure; 2 and a sentence for what cannot be read."""
    try:
        given = key_values(words, KEYS)
        if "out" not in given:
            raise ConfigError("out: a folder is needed")
        folder = Path(given["out"])
        place = folder / "by_difficulty.csv"
        if "study" in given:
            table = measured(given["study"], given.get("output_dir", "outputs"))
            table.to_csv(place, index=False, float_format="%.6f")
        elif not place.exists():
            raise ConfigError(f"out: {str(folder)!r} has no {place.name}; give a study, too")
    except (ConfigError, ResultsError) as error:
        print(error, file=sys.stderr)
        return 2
    verdicts = judged(pd.read_csv(place))
    verdicts.to_csv(folder / "difficulty_verdicts.csv", index=False)
    figure, caption = draw(verdicts)
    style.save(figure, folder, "difficulty", caption, kinds=("png",))
    print(verdicts.round(4).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
