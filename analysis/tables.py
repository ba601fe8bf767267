"""The table of arms: n, start, final value with its interval, rise.

python analysis/tables.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…]
"""

import sys
from pathlib import Path

from grpolab.results.analyze import read_arguments, write_tables
from grpolab.results.load import load
from grpolab.results.summary import arm_table

DEFAULTS = {"output_dir": "outputs", "out": "figures", "metric": "eval/accuracy"}
SOURCE = {"sweep": "latest", "study": None, "uri": None}

given = read_arguments(sys.argv[1:], {**DEFAULTS, **SOURCE})
results = load(**{key: given[key] for key in (*SOURCE, "output_dir")})
write_tables(arm_table(results, given["metric"]), Path(given["out"]))
