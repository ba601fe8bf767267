"""Reward and evaluation against step, generated tokens and wall time.

python analysis/learning_curves.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…
    dark=true]
"""

import sys

from grpolab.results.analyze import draw_script

if __name__ == "__main__":
    sys.exit(draw_script("learning_curves", sys.argv[1:]))
