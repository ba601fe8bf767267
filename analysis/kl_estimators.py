"""k1, k2 and k3 of the KL to the reference on one axis, a panel an arm.

python analysis/kl_estimators.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…
    dark=true]
"""

import sys

from grpolab.results.analyze import draw_script

if __name__ == "__main__":
    sys.exit(draw_script("kl_estimators", sys.argv[1:]))
