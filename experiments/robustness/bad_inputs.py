"""What every bad setting, file, model, checkpoint and store of the tests is answered with.

    python experiments/robustness/bad_inputs.py

Gives each case of tests/end_to_end/test_bad_configs.py and test_bad_inputs.py to the command, as
the tests do, and writes the table of README.md here. The cases are the tests' own lists: what is
refused there with exit code 2 and nothing written is what stands in the table.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from grpolab.cli import main as grpolab

ROOT = Path(__file__).resolve().parents[2]
PAGE = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- bad_inputs.py writes this table -->", "<!-- the end of the table -->"
LONGEST = 90  # letters of what was given: one case gives 400 digits
SENTENCE = 500  # letters of a sentence

if TYPE_CHECKING:
    from tests.end_to_end import test_bad_configs, test_bad_inputs
else:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "end_to_end")]
    import test_bad_configs
    import test_bad_inputs

Case = tuple[str, str, Callable[[Path], Sequence[str]]]
"""Kind, name, and what makes the thing in a folder and says the command's words."""


def cases() -> Iterator[Case]:
    """Every case of the tests' lists, in their order."""
    for name, (overrides, _) in test_bad_configs.SETTINGS.items():
        yield "setting", name, alone("train", *overrides)
    for name, (file, make, _) in test_bad_inputs.DATA.items():
        yield "data", name, placed(make, file, "train", "task=jsonl", "task.path={}")
    for name, (make, _) in test_bad_inputs.MODELS.items():
        yield "model", name, placed(make, "model", "train", "model.name={}")
    for name, (make, named, _) in test_bad_inputs.CHECKPOINTS.items():
        words = ("probe", f"checkpoint={{}}/{named}".removesuffix("/."), "variants=[clip=ppo]")
        yield "checkpoint", name, placed(make, "run", *words)
    for name, make in test_bad_inputs.STORES.items():
        yield "store", name, placed(make, "store.db", "train", "tracking.uri=sqlite:///{}")
    for name, (said, _) in test_bad_inputs.OTHERS.items():
        yield "command", name, alone(*said)


def alone(*words: str) -> Callable[[Path], Sequence[str]]:
    """The words of a command that needs nothing made first."""
    return lambda folder: words


def placed(
    make: Callable[[Path], object], file: str, *words: str
) -> Callable[[Path], Sequence[str]]:
    """The words of a command about a thing that is made first."""

    def prepare(folder: Path) -> Sequence[str]:
        make(folder / file)
        return [word.replace("{}", str(folder / file)) for word in words]

    return prepare


def row(case: Case) -> str:
    """A line of the table.

    Raises:
        AssertionError: the case was not refused in one sentence.
    """
    kind, name, prepare = case
    out, said = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "files")
        here = Path(scratch, "here")
        folder.mkdir()
        here.mkdir()
        words = prepare(folder)
        with chdir(here), redirect_stdout(out), redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a damaged file, which its sentence names
            code = grpolab(words)
        left = os.listdir(here)
    lines = said.getvalue().splitlines()
    assert (code, out.getvalue(), left, len(lines)) == (2, "", [], 1), (kind, name, code, lines)
    given = " ".join(words).replace(f"{folder}{os.sep}", "")
    sentence = lines[0].removeprefix("grpolab: ").replace(f"{folder}{os.sep}", "")
    sentence = escaped(shortened(sentence, SENTENCE))
    return f"| {kind} | {name} | {code_of(shortened(given))} | {sentence} |"


def shortened(text: str, longest: int = LONGEST) -> str:
    """A text with an ellipsis for what is too long."""
    return text if len(text) <= longest else f"{text[:longest]}…"


def code_of(text: str) -> str:
    """As code in a cell."""
    return "`" + text.replace("|", "\\|") + "`"


def escaped(text: str) -> str:
    """As text in a cell."""
    return re.sub(r"([|*<`])", r"\\\1", text.replace(str(ROOT), "…"))


def main() -> None:
    """Writes the table between its marks."""
    rows = [row(case) for case in cases()]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    head = ["", "| kind | case | given | what is said |", "|---|---|---|---|"]
    table = "\n".join([BEGIN, *head, *rows, "", END])
    PAGE.write_text(before + table + rest.partition(END)[2], encoding="utf-8")
    print(f"{len(rows)} cases, each refused in one sentence")


if __name__ == "__main__":
    main()
