"""Entropy of the policy against the step, and reward against entropy.

python analysis/entropy.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…
    dark=true]
"""

import sys

from grpolab.results.analyze import draw_script

if __name__ == "__main__":
    sys.exit(draw_script("entropy", sys.argv[1:]))
