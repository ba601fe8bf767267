"""The tables: arms (n, start, final value with its interval, rise) and verdicts (md, csv, LaTeX).

python analysis/tables.py sweep=latest output_dir=outputs out=DIR [metric=… study=… uri=…]
    [equivalence=… correction=… alpha=… test=…]
"""

import sys
from dataclasses import asdict

import pandas as pd

from grpolab.results.analyze import script_input, write_tables
from grpolab.results.summary import arm_table
from grpolab.results.tables import write_verdicts
from grpolab.results.verdicts import verdicts

given = script_input(sys.argv[1:])
arms = pd.concat([arm_table(given.results, metric) for metric in given.metrics], ignore_index=True)
write_tables(arms, given.out)
write_verdicts(verdicts(given.results, given.metrics, **asdict(given.rules)), given.out)
