"""Reward and evaluation against step, generated tokens and wall time.

python analysis/learning_curves.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…]
"""

import sys

from grpolab.results import figures, style
from grpolab.results.analyze import curve_metrics, script_input

given = script_input(sys.argv[1:])
metrics = curve_metrics(given.results, given.metric)
figure = figures.learning_curves(given.results, metrics)
caption = figures.learning_curves_caption(given.results, metrics)
style.save(figure, given.out, "learning_curves", caption)
