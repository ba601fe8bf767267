"""The table of arms: n, start, final value with its interval, rise.

python analysis/tables.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…]
"""

import sys

from grpolab.results.analyze import script_input, write_tables
from grpolab.results.summary import arm_table

given = script_input(sys.argv[1:])
write_tables(arm_table(given.results, given.metric), given.out)
