"""Changes added one after the other: each rung's final value.

python analysis/ladder.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…
    dark=true]
"""

import sys

from grpolab.results.analyze import draw_script

if __name__ == "__main__":
    sys.exit(draw_script("ladder", sys.argv[1:]))
