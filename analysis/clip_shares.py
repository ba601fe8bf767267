"""Shares of tokens at which the lower and the upper bound change the gradient.

python analysis/clip_shares.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…
    dark=true]
"""

import sys

from grpolab.results.analyze import draw_script

if __name__ == "__main__":
    sys.exit(draw_script("clip_shares", sys.argv[1:]))
