"""Final pass@k against k, and before training.

python analysis/pass_at_k.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…
    dark=true]
"""

import sys

from grpolab.results.analyze import draw_script

if __name__ == "__main__":
    sys.exit(draw_script("pass_at_k", sys.argv[1:]))
