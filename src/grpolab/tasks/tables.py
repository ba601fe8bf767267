"""Rows of a user's file, exactly as written, with their row numbers.

JSON and CSV are read with the standard library rather than with the `datasets` builders, whose type
guessing changes answers: "2024-01-01" comes back as a time, 7 as 7.0 beside a 2.5, "007" as 7.
Here a number keeps its spelling. It also means no cache that a changed file could outdate.
"""

from __future__ import annotations

import csv
import difflib
import importlib
import json
import logging
import random
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from grpolab.tasks.base import Example, TaskError

Row = dict[str, Any]


def read_rows(path: str, key: str) -> list[Row]:
    """The rows of a .jsonl, .ndjson, .json, .csv, .tsv or .parquet file, one dict a row.

    Numbers of JSON and CSV come as text, spelled as in the file. `key` is the config key that gave
    the path, for the messages. Row 1 is the first row of data.

    Raises:
        TaskError: no such file, an unknown ending, malformed contents (with the row), no rows.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise TaskError(
            f"{key}={path!r}: no such file (looked for {file.absolute()}); "
            f"allowed: an existing file ending in {', '.join(_READERS)}"
        )
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise TaskError(
            f"{key}={path!r}: cannot read a file ending in {file.suffix!r}; "
            f"allowed: {', '.join(_READERS)}"
        )
    try:
        rows = reader(file)
    except (UnicodeDecodeError, csv.Error, ValueError, RecursionError) as error:
        raise TaskError(f"{key}={path!r}: {_flat(error)}") from error
    if not rows:
        raise TaskError(f"{key}={path!r}: the file has no rows; allowed: at least one row")
    return rows


def check_column(rows: Sequence[Row], column: str, key: str, where: str) -> None:
    """TaskError where no row has this column; names the nearest one and lists all.

    `key` is the config key that named the column, `where` the key and path of the file.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if column not in columns:
        raise TaskError(
            f"{key}={column!r}: {where} has no such column; allowed: "
            f"{', '.join(columns)}{did_you_mean(column, columns)}"
        )


def cell(row: Row, column: str, place: str) -> str:
    """The text of one cell, stripped of nothing; TaskError where it is empty or no plain value.

    `place` says which file and row, for the message.
    """
    value = row.get(column)
    if isinstance(value, (dict, list)):
        raise TaskError(
            f"{place}: column {column!r} holds a {type(value).__name__}; "
            "allowed: text, a number or true/false"
        )
    text = _text(value)
    if not text.strip():
        raise TaskError(f"{place}: column {column!r} is empty; allowed: a text that is not blank")
    return text


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """'; did you mean x?' for the allowed name closest to the given one, or nothing."""
    close = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def split(
    examples: Sequence[Example], held_out_size: int, data_seed: int
) -> tuple[list[Example], list[Example]]:
    """Train and held-out examples: whole prompts are drawn, so that no prompt is on both sides.

    Prompts are drawn without repetition until `held_out_size` examples are held out; a prompt that
    stands in several rows is drawn with all of them, and only where they fit, so the held-out part
    may be smaller. Both sides keep the order of the file. The draw depends on `data_seed` and on
    the prompts alone.
    """
    sizes: dict[str, int] = {}
    for example in examples:
        sizes[example.prompt] = sizes.get(example.prompt, 0) + 1
    order = list(sizes)
    random.Random(data_seed).shuffle(order)
    held: set[str] = set()
    room = held_out_size
    for prompt in order:
        if sizes[prompt] <= room:
            held.add(prompt)
            room -= sizes[prompt]
    train = [example for example in examples if example.prompt not in held]
    return train, [example for example in examples if example.prompt in held]


def held_out_count(held_out_size: int | None, rows: int, where: str) -> int:
    """How many of `rows` examples to hold out: the setting, or a tenth (at least one) for None.

    Raises:
        TaskError: nothing would be left to train on.
    """
    count = max(1, rows // 10) if held_out_size is None else held_out_size
    if count >= rows:
        raise TaskError(
            f"task.held_out_size={count}: {where} has {rows} row{'s' if rows > 1 else ''}, which "
            f"leaves none to train on; allowed: at most {rows - 1}"
        )
    return count


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _read_json_lines(file: Path) -> list[Row]:
    rows: list[Row] = []
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                rows.append(_json_row(_json(line, f"row {number}"), f"row {number}"))
    return rows


def _read_json(file: Path) -> list[Row]:
    contents = _json(file.read_text(encoding="utf-8-sig") or "[]", "the file")
    if not isinstance(contents, list):
        raise ValueError(
            f"the file holds a {type(contents).__name__}; allowed: a list of objects, or one "
            "object a line in a file ending in .jsonl"
        )
    return [_json_row(row, f"row {number}") for number, row in enumerate(contents, start=1)]


def _json(text: str, what: str) -> Any:
    # Numbers stay the text they are: 2.50 and 12345678901234567890 lose nothing.
    try:
        return json.loads(text, parse_float=str, parse_int=str, parse_constant=str)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is no valid JSON ({error})") from error


def _json_row(row: Any, what: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{what} is no JSON object; allowed: one object a row")
    return row


def _read_csv(file: Path, delimiter: str = ",") -> list[Row]:
    rows: list[Row] = []
    with file.open(encoding="utf-8-sig", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines, delimiter=delimiter), start=1):
            if None in row:
                raise ValueError(f"row {number} has more cells than the header has columns")
            rows.append(row)
    return rows


def _read_tsv(file: Path) -> list[Row]:
    return _read_csv(file, delimiter="\t")


def _read_parquet(file: Path) -> list[Row]:
    datasets: Any = importlib.import_module("datasets")  # slow to import, and untyped
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it finds, we say
    # A cache of its own, dropped at once: the file may change while its time stamp does not.
    with tempfile.TemporaryDirectory() as cache:
        try:
            table = datasets.load_dataset(
                "parquet", data_files=str(file), split="train", cache_dir=cache
            )
        except Exception as error:
            raise ValueError(
                f"cannot be read as parquet ({_flat(error.__cause__ or error)})"
            ) from error
        return [dict(row) for row in table]


def _flat(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
