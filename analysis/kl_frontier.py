"""Final value against the root of the KL to the reference, with the Pareto hull.

python analysis/kl_frontier.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…
    dark=true]
"""

import sys

from grpolab.results.analyze import draw_script

if __name__ == "__main__":
    sys.exit(draw_script("kl_frontier", sys.argv[1:]))
