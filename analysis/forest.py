"""Each arm's difference to the baseline with its corrected interval and its verdict.

python analysis/forest.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…
    dark=true]
"""

import sys

from grpolab.results.analyze import draw_script

if __name__ == "__main__":
    sys.exit(draw_script("forest", sys.argv[1:]))
