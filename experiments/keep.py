"""Keeps a study's numbers small enough to be committed: `runs.parquet` and `history.parquet`.

    python experiments/keep.py study=NAME output_dir=outputs out=experiments/NAME
        [sweep=ID] [uri=STORE] [metrics=NAME,NAME or all] [every=5] [whole=NAME,NAME]

Evaluations (`eval/…`) and the metrics of `whole` are kept at every step to the last digit; those of
`metrics` (what the figures show) at every `every`th step and where there is an evaluation, rounded
to float32; tokens and wall time at all of these. `grpolab analyze kept=experiments/NAME` makes the
same verdicts of them as of the runs.
"""

import sys

from grpolab.cli.inspect import key_values
from grpolab.component import ConfigError
from grpolab.results import kept
from grpolab.results.frames import ResultsError
from grpolab.results.load import load

KEYS = {
    "study": "all runs of a study",
    "sweep": "only this sweep's",
    "output_dir": "where the runs lie (outputs)",
    "uri": "read from this MLflow store instead",
    "out": "folder of both files",
    "metrics": "thinned metrics, separated by commas, or all",
    "every": "steps from one kept number of these to the next (5)",
    "whole": "metrics kept at every step, separated by commas",
}


def main(words: list[str]) -> int:
    """Writes both files and says how large they are; 2 and a sentence for what cannot be."""
    try:
        given = key_values(words, KEYS)
        if "out" not in given or not given.keys() & {"study", "sweep"}:
            raise ConfigError("out: a folder is needed, and a study or sweep")
        every = given.get("every", "5")
        if not every.isdecimal():
            raise ConfigError(f"every: {every!r} given; a whole number of steps is needed")
        source = {
            key: given[key] for key in ("study", "sweep", "output_dir", "uri") if key in given
        }
        results = load(**source)
        metrics = given.get("metrics", ",".join(kept.USUAL))
        names = (
            sorted(results.history["metric"].unique()) if metrics == "all" else metrics.split(",")
        )
        whole = [name for name in given.get("whole", "").split(",") if name]
        made = kept.write(results, given["out"], names, int(every), whole)
    except (ConfigError, ResultsError) as error:
        print(error, file=sys.stderr)
        return 2
    print(
        f"{made.runs} runs, {made.points} of {made.points_before} numbers, "
        f"{made.size / 1000:.0f} kB in {given['out']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
