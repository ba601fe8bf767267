"""Share of runs whose final value is above each score.

python analysis/performance_profile.py sweep=latest output_dir=outputs out=DIR [metric=… study=…
    uri=… dark=true]
"""

import sys

from grpolab.results.analyze import draw_script

if __name__ == "__main__":
    sys.exit(draw_script("performance_profile", sys.argv[1:]))
