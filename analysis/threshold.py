"""Generated tokens and wall time until the baseline's final value is reached.

python analysis/threshold.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…
    dark=true]
"""

import sys

from grpolab.results.analyze import draw_script

if __name__ == "__main__":
    sys.exit(draw_script("threshold", sys.argv[1:]))
