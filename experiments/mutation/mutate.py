"""Are the tests of the formulas able to fail? Makes small wrong edits and runs the tests on each.

    python experiments/mutation/mutate.py [--only objective/clip] [--jobs N] [--sample N] [--out F]

Each mutant lies in a scratch copy of the package, its tests and its configuration. One warm
process has imported torch and pytest and forks for every mutant; the child imports the mutated
package and runs the tests, those first that call the mutated function. See README.md.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.mutation.mutants import Mutant, find_mutants
    from experiments.mutation.trial import Baseline, Pool, Verdict, warm_up
else:
    from mutants import Mutant, find_mutants
    from trial import Baseline, Pool, Verdict, warm_up

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "grpolab"
EQUIVALENT = Path(__file__).with_name("equivalent.json")

TARGETS = ("objective/**/*.py", "training/selection.py", "rewards/*.py")
NO_FORMULAS = {
    "objective/settings.py", "rewards/base.py", "rewards/guard.py", "rewards/isolated.py",
    "rewards/neural.py", "rewards/python.py",
}  # fmt: skip
OBJECTIVE = ("tests/objective", "tests/parity/test_losses.py", "tests/test_component.py")
TESTS: dict[str, tuple[str, ...]] = {
    "objective/": OBJECTIVE,
    "objective/advantage": (*OBJECTIVE, "tests/training/test_advantages.py"),
    "objective/clip": (*OBJECTIVE, "tests/training/test_update.py"),
    "objective/kl": (*OBJECTIVE, "tests/training/test_advantages.py"),
    "objective/loss": (
        *OBJECTIVE, "tests/training/test_measures.py", "tests/training/test_update.py",
    ),
    "objective/masked": (*OBJECTIVE, "tests/training/test_update.py"),
    "training/selection": (
        "tests/training/test_selection.py", "tests/training/test_replay.py",
        "tests/training/test_collect.py", "tests/objective", "tests/test_component.py",
    ),
    "rewards/": (
        "tests/rewards/test_choice.py", "tests/rewards/test_length.py",
        "tests/rewards/test_math_judge.py", "tests/rewards/test_math_verify.py",
        "tests/rewards/test_mixture.py",
        "tests/rewards/test_repetition.py", "tests/rewards/test_text.py",
        "tests/parity/test_rewards.py", "tests/test_component.py",
    ),
}  # fmt: skip
"""Module (the longest prefix decides) → its tests."""


def tests_of(module: str) -> tuple[str, ...]:
    """The test files of a module; those that do not exist are left out."""
    prefix = max((p for p in TESTS if module.startswith(p)), key=len)
    found = [p for pattern in TESTS[prefix] for p in sorted(ROOT.glob(pattern))]
    return tuple(str(p.relative_to(ROOT)) for p in found)


def modules(only: Sequence[str]) -> list[str]:
    """The target modules, below the package's folder."""
    found = {str(p.relative_to(PACKAGE)) for t in TARGETS for p in PACKAGE.glob(t)}
    kept = sorted(m for m in found - NO_FORMULAS if not only or m.startswith(tuple(only)))
    if not kept:
        sys.exit(f"--only {' '.join(only)}: no such module; allowed: a prefix of one of\n  "
                 + "\n  ".join(sorted(found - NO_FORMULAS)))  # fmt: skip
    return kept


def allowed_survivors(scope: Sequence[str], known: set[str]) -> dict[str, str]:
    """{key: reason} of the mutants that change no result; says which entries are out of date.

    Args:
        scope: the modules looked at.
        known: the keys of all their mutants.
    """
    found = {}
    for entry in json.loads(EQUIVALENT.read_text()):
        facts = {k: str(entry[k]) for k in ("module", "function", "kind", "before", "after")}
        key = Mutant(line=0, start=0, end=0, text="", **facts).key
        found[key] = entry["reason"]
        if facts["module"] in scope and key not in known:
            print(f"{EQUIVALENT.name}: no such mutant any more: {facts['after']}")
    return found


def report(results: list[tuple[Mutant, Verdict]], equivalent: dict[str, str]) -> str:
    """The table by module, then every survivor as a diff."""
    lines = [f"{'module':<34} mutants  killed  timed out  equivalent  survived"]
    by_module: dict[str, Counter[str]] = {}
    for mutant, verdict in results:
        state = standing(mutant, verdict, equivalent)
        by_module.setdefault(mutant.module, Counter())[state] += 1
    total: Counter[str] = sum(by_module.values(), Counter())
    for name, counts in [*by_module.items(), ("all", total)]:
        lines.append(
            f"{name:<34} {counts.total():>7} {counts['killed']:>7} {counts['timed out']:>10} "
            f"{counts['equivalent']:>11} {counts['survived']:>9}"
        )
    for mutant, verdict in results:
        if standing(mutant, verdict, equivalent) == "survived":
            lines += ["", f"src/grpolab/{mutant.module}:{mutant.line}  {mutant.function}  "
                          f"({mutant.kind}, {verdict.tests} tests)",
                      f"  - {mutant.before}", f"  + {mutant.after}"]  # fmt: skip
    return "\n".join(lines)


def standing(mutant: Mutant, verdict: Verdict, equivalent: dict[str, str]) -> str:
    """killed, timed out, equivalent (a listed survivor) or survived."""
    listed = verdict.state == "survived" and mutant.key in equivalent
    return "equivalent" if listed else verdict.state


def as_json(
    results: list[tuple[Mutant, Verdict]], equivalent: dict[str, str], settings: dict[str, Any]
) -> str:
    """Everything, for others to read."""
    rows = []
    for mutant, verdict in results:
        row = {k: v for k, v in asdict(mutant).items() if k not in ("start", "end", "text")}
        row |= {**asdict(verdict), "key": mutant.key, "reason": equivalent.get(mutant.key)}
        rows.append(row | {"state": standing(mutant, verdict, equivalent)})
    counts = dict(Counter(r["state"] for r in rows))
    found = {"settings": settings, "counts": counts, "mutants": rows}
    return json.dumps(found, indent=1, ensure_ascii=False)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Mutation check of the formulas' tests.")
    parser.add_argument("--only", nargs="*", default=[], help="prefixes, such as objective/clip")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at the same time")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds beside the tests' own")
    parser.add_argument("--checks", action="store_true", help="the validation of settings too")
    parser.add_argument("--list", action="store_true", help="print the mutants and try none")
    parser.add_argument("--out", type=Path, help="results as JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where every mutant was killed or is listed as equivalent, else 1."""
    given = parse(arguments)
    names, checks = modules(given.only), given.checks
    mutants = [m for name in names for m in find_mutants(PACKAGE, name, checks=checks)]
    equivalent = allowed_survivors(names, {m.key for m in mutants})
    if given.sample is not None and given.sample < len(mutants):
        kept = sorted(random.Random(given.seed).sample(range(len(mutants)), given.sample))
        mutants = [mutants[i] for i in kept]
    if given.list:
        for m in mutants:
            print(f"{m.module}:{m.line} {m.kind}\n  - {m.before}\n  + {m.after}")
        return 0
    began = time.monotonic()
    warm_up()
    with tempfile.TemporaryDirectory(prefix="mutation-") as scratch:
        files = sorted({t for m in mutants for t in tests_of(m.module)})
        baseline = Baseline.measure(ROOT, Path(scratch), files)
        print(baseline.describe(), flush=True)
        pool = Pool(baseline, Path(scratch), given.jobs, given.timeout)
        results = []
        for mutant, verdict in pool.run(mutants, tests_of):
            results.append((mutant, verdict))
            state = standing(mutant, verdict, equivalent)
            print(f"{len(results):>4}/{len(mutants)} {state:<10} {verdict.seconds:5.1f} s  "
                  f"{mutant.module}:{mutant.line} {mutant.kind}", flush=True)  # fmt: skip
    results.sort(key=lambda r: (r[0].module, r[0].start, r[0].text))
    print(f"\n{report(results, equivalent)}\n\n{time.monotonic() - began:.0f} s")
    if given.out is not None:
        settings = {k: v if k != "out" else str(v) for k, v in vars(given).items()}
        settings["left_out"] = baseline.failing
        given.out.write_text(as_json(results, equivalent, settings) + "\n")
    return int(any(standing(m, v, equivalent) == "survived" for m, v in results))


if __name__ == "__main__":
    sys.exit(main())
