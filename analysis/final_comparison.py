"""Final value of each arm with its interval, its seeds and where it started.

python analysis/final_comparison.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…]
"""

import sys
from pathlib import Path

from grpolab.results import figures, style
from grpolab.results.analyze import read_arguments
from grpolab.results.load import load

DEFAULTS = {"output_dir": "outputs", "out": "figures", "metric": "eval/accuracy"}
SOURCE = {"sweep": "latest", "study": None, "uri": None}

given = read_arguments(sys.argv[1:], {**DEFAULTS, **SOURCE})
results = load(**{key: given[key] for key in (*SOURCE, "output_dir")})
figure = figures.final_comparison(results, given["metric"])
caption = figures.final_comparison_caption(results, given["metric"])
style.save(figure, Path(given["out"]), "final_comparison", caption)
