"""Mean |A| by a group's share of right answers, and the weight f_G(p), beside theory.

python analysis/advantage_by_difficulty.py sweep=latest output_dir=outputs out=DIR [study=… uri=…
    kept=… where=… dark=true]
"""

import sys

from grpolab.results.analyze import draw_script

if __name__ == "__main__":
    sys.exit(draw_script("advantage_by_difficulty", sys.argv[1:]))
