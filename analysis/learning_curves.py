"""Reward and evaluation against step, generated tokens and wall time.

python analysis/learning_curves.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…]
"""

import sys
from pathlib import Path

from grpolab.results import figures, style
from grpolab.results.analyze import curve_metrics, read_arguments
from grpolab.results.load import load

DEFAULTS = {"output_dir": "outputs", "out": "figures", "metric": "eval/accuracy"}
SOURCE = {"sweep": "latest", "study": None, "uri": None}

given = read_arguments(sys.argv[1:], {**DEFAULTS, **SOURCE})
results = load(**{key: given[key] for key in (*SOURCE, "output_dir")})
metrics = curve_metrics(results, given["metric"])
figure = figures.learning_curves(results, metrics)
caption = figures.learning_curves_caption(results, metrics)
style.save(figure, Path(given["out"]), "learning_curves", caption)
