"""Lengths of completions, of the correct and the wrong ones, and the share cut off.

python analysis/lengths.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…
    dark=true]
"""

import sys

from grpolab.results.analyze import draw_script

if __name__ == "__main__":
    sys.exit(draw_script("lengths", sys.argv[1:]))
