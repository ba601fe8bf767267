"""Standard deviation and maximum of the importance ratio, and its effective sample size.

python analysis/ratios.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…
    dark=true]
"""

import sys

from grpolab.results.analyze import draw_script

if __name__ == "__main__":
    sys.exit(draw_script("ratios", sys.argv[1:]))
