"""Changes added one after the other, in both orders, and each taken back from them all.

python analysis/ladder.py sweep=latest output_dir=outputs out=DIR [order=[KEY,KEY] metric=… study=…
    uri=… kept=… where=… dark=true]
"""

import sys

from grpolab.results.analyze import draw_script

if __name__ == "__main__":
    sys.exit(draw_script("ladder", sys.argv[1:]))
