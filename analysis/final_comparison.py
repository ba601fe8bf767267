"""Final value of each arm with its interval, its seeds and where it started.

python analysis/final_comparison.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…]
"""

import sys

from grpolab.results import figures, style
from grpolab.results.analyze import script_input

given = script_input(sys.argv[1:])
figure = figures.final_comparison(given.results, given.metric)
caption = figures.final_comparison_caption(given.results, given.metric)
style.save(figure, given.out, "final_comparison", caption)
