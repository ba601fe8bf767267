"""Runs every case and writes the table of README.md: python tests/parity/table.py [FILE]"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "policy"))
if TYPE_CHECKING:
    from tests.parity.harness.case import Case
    from tests.parity.harness.cases import CASES
    from tests.parity.harness.compare import Comparison
else:
    from harness.case import Case
    from harness.cases import CASES
    from harness.compare import Comparison

BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
EQUAL_HEAD = "| case | TRL | ours | parameters, float32 | update, float32 | update, float64 | off |"
APART_HEAD = "| case | TRL | ours | update, float32 | why |"
HIDDEN = ("per_device_train_batch_size", "gradient_accumulation_steps", "disable_dropout")


def main() -> None:
    """Replaces what stands between the markers."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "README.md"
    with tempfile.TemporaryDirectory() as folder:
        table = "\n".join(lines(Path(folder))) + "\n"
    text = target.read_text() if target.exists() else BEGIN + END
    before, _, after = text.partition(BEGIN)
    target.write_text(before + BEGIN + table + END + after.partition(END)[2])


def lines(folder: Path) -> Iterator[str]:
    """The two tables: equal cases, then those apart."""
    notes = [case.note for case in CASES if case.note and not case.apart]
    notes = list(dict.fromkeys(notes))
    for head, apart in ((EQUAL_HEAD, False), (APART_HEAD, True)):
        yield from (head, "|---" * (head.count("|") - 1) + "|")
        for case in CASES:
            if case.apart == apart:
                yield row(case, folder, notes)
        yield ""
    yield from (f"{number}. {note}" for number, note in enumerate(notes, start=1))


def row(case: Case, folder: Path, notes: list[str]) -> str:
    """One case, measured."""
    single = Comparison(case, torch.float32, folder).gaps()
    cells = [case.name, listed(case.trl), listed(case.ours)]
    if case.apart:
        cells += [f"{single.update:.1g}", case.note]
        return "| " + " | ".join(cells) + " |"
    if case.note:
        cells[0] += f" [{notes.index(case.note) + 1}]"
    exact = Comparison(case, torch.float64, folder)
    cells += [f"{x:.0e}" for x in (single.parameters, single.update, exact.gaps().update)]
    cells.append(f"{exact.gaps_when_off().moved:.1g}")
    print(case.name, *cells[3:], file=sys.stderr)
    return "| " + " | ".join(cells) + " |"


def listed(settings: Mapping[str, object]) -> str:
    """key=value, …"""
    shown = [f"`{k}={v}`" for k, v in settings.items() if k not in HIDDEN]
    return " ".join(shown) or "–"


if __name__ == "__main__":
    main()
