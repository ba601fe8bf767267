"""Final value against each swept factor that took three or more numbers.

python analysis/sensitivity.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…
    dark=true]
"""

import sys

from grpolab.results.analyze import draw_script

if __name__ == "__main__":
    sys.exit(draw_script("sensitivity", sys.argv[1:]))
