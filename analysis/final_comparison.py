"""Final value of each arm with its interval, its seeds and where it started.

python analysis/final_comparison.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…
    dark=true]
"""

import sys

from grpolab.results.analyze import draw_script

if __name__ == "__main__":
    sys.exit(draw_script("final_comparison", sys.argv[1:]))
