"""Mean final value in each cell of two crossed factors.

python analysis/factorial.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…
    dark=true]
"""

import sys

from grpolab.results.analyze import draw_script

if __name__ == "__main__":
    sys.exit(draw_script("factorial", sys.argv[1:]))
