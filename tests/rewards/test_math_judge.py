"""The helper process of `math_verify` evaluates nothing of what it reads."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("math_verify")

AUDIT = """
import json, sys
from grpolab.rewards import math_judge
table = json.loads(sys.argv[1])
settings = dict(read_gold="whole", anchored=False, boxed_first=True, plain=True,
                candidates="any", repair=True, after=None)
math_judge.prepare()
seen = set()
def hook(event, arguments):
    if event == "compile" and arguments[1] in ("<string>", None):
        seen.add(str(arguments[0]))
    if event in ("os.system", "subprocess.Popen", "open") and "HARM" in str(arguments):
        seen.add(event)
sys.addaudithook(hook)
for gold, answer in table:
    for text in (answer, rf"\\boxed{{{answer}}}"):
        math_judge.judge({**settings, "gold": gold, "completion": text})
    math_judge.judge({**settings, "gold": answer, "completion": answer, "read_gold": "text"})
print(json.dumps(sorted(seen)))
"""

HARMFUL = [
    "__import__('os').system('touch HARM')",
    "open('HARM', 'w')",
    "1 + 2 * (3 - 4)",
    "2**10",
    "1e5",
    "().__class__.__bases__[0]",
    r"\operatorname{exec}(1)",
    "lambda: 0",
    "'a' 'b'",
    "0x1F",
    "1_000",
    "1j",
    "f(1)(2)",
    "Integer(3)",
    "[1, 2][0]",
    "1 if True else 2",
    "9.9.9",
    "True",
    "N(1)",
    r"\text{__import__('os')}",
    r"x_{__import__('os').system('touch HARM')}",
]


def test_no_answer_is_evaluated() -> None:
    table = [(gold, answer) for gold in ("3", "x") for answer in HARMFUL]
    table += [
        ("x^2+3x+2", "(x+1)(x+2)"),
        (r"\{1,2\}", "2,1"),
        ("[1,2)", "1 < x < 2"),
        ("50%", "0.5"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", AUDIT, json.dumps(table)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # SymPy's parser fills its name space by one constant line; nothing of an answer is compiled.
    # The polynomials' own helpers are made of templates, by the number of variables.
    compiled = [c for c in json.loads(done.stdout) if not c.startswith("b'def monomial_")]
    assert compiled == ["b'from sympy import *'"]
