"""Filters as query strings: `status == 'done' and factor.optimizer.lr <= 1e-4 and step > 10`.

The language is that part of pandas' `query` which compares columns with constants. pandas itself is
not asked: its `query` can reach attributes, functions and local names, which a filter that came
from a command line or a file has no business with. Nothing but comparisons is ever evaluated.
"""

from __future__ import annotations

import ast
import io
import operator
import re
import tokenize
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from grpolab.results.frames import ResultsError, refuse

Mask = npt.NDArray[np.bool_]
HISTORY_ONLY = ("step", "metric", "value", "tokens", "wall")
"""Columns that only the history has; what names them filters numbers, all else filters runs."""
_WORDS = {"&": "and", "|": "or"}
_LONGEST = 10_000
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Where:
    """A filter, split at its outermost `and`s into what concerns runs and what their numbers."""

    def __init__(self, text: str) -> None:
        """Raises ResultsError for what is no comparison of columns with constants."""
        self.text = text
        self.runs: list[ast.expr] = []
        self.history: list[ast.expr] = []
        for part in _conjuncts(_parsed(text)):
            names = {name for node in _names(part) if (name := _dotted(node))}
            of_points = names & set(HISTORY_ONLY)
            if of_points and names - set(HISTORY_ONLY) - {"study", "job_id", "arm", "seed"}:
                mixed = ", ".join(sorted(names))
                raise ResultsError(
                    f"where={text}: one comparison is about runs and about their numbers "
                    f"({mixed}); allowed: such parts joined by `and`"
                )
            (self.history if of_points else self.runs).append(part)

    def of_runs(self, frame: pd.DataFrame) -> Mask:
        """[rows] which runs are meant."""
        return self._all(self.runs, frame, [*map(str, frame.columns), *HISTORY_ONLY])

    def of_history(self, frame: pd.DataFrame) -> Mask:
        """[rows] which numbers are meant."""
        return self._all(self.history, frame, list(map(str, frame.columns)))

    def _all(self, parts: Sequence[ast.expr], frame: pd.DataFrame, names: list[str]) -> Mask:
        mask = np.ones(len(frame), dtype=bool)
        for part in parts:
            mask &= _Evaluation(self.text, frame, names).mask(part)
        return mask


def _parsed(text: str) -> ast.expr:
    """The expression; `&` and `|` bind like `and` and `or`, and backticks quote a column."""
    if len(text) > _LONGEST:
        raise ResultsError(f"where: {len(text)} characters given; allowed: {_LONGEST}")
    quoted: list[str] = []

    def keep(match: re.Match[str]) -> str:
        quoted.append(match[1])
        return f"backtick_{len(quoted) - 1}_"

    try:
        source = re.sub(r"`([^`]*)`", keep, text.strip())
        tokens = [
            (tokenize.NAME, _WORDS[word])
            if kind == tokenize.OP and word in _WORDS
            else (kind, word)
            for kind, word, *_ in tokenize.generate_tokens(io.StringIO(source).readline)
        ]
        tree = ast.parse(tokenize.untokenize(tokens).strip(), mode="eval").body
    except (SyntaxError, tokenize.TokenError, ValueError, RecursionError, MemoryError) as error:
        problem = str(error).splitlines()[0]
        raise ResultsError(f"where={text}: is no expression ({problem})") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and (found := re.fullmatch(r"backtick_(\d+)_", node.id)):
            if int(found[1]) >= len(quoted):
                raise ResultsError(f"where={text}: no such column {node.id}")
            node.id = quoted[int(found[1])]
    return tree


def _conjuncts(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        return [part for value in node.values for part in _conjuncts(value)]  # noqa: PD011
    return [node]


def _names(node: ast.AST) -> list[ast.AST]:
    """The columns named below a node, `factor.clip` as one."""
    if _dotted(node):
        return [node]
    return [name for child in ast.iter_child_nodes(node) for name in _names(child)]


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)):
        return f"{before}.{node.attr}"
    return None


class _Evaluation:
    def __init__(self, text: str, frame: pd.DataFrame, names: Sequence[str]) -> None:
        self.text, self.frame, self.names = text, frame, names

    def mask(self, node: ast.expr) -> Mask:
        """[rows] where an expression of comparisons holds."""
        if isinstance(node, ast.BoolOp):
            masks = [self.mask(value) for value in node.values]  # noqa: PD011
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            found: Mask = join.reduce(masks)
            return found
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.Invert)):
            return ~self.mask(node.operand)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            pairs = zip(sides[:-1], node.ops, sides[1:], strict=True)
            held: Mask = np.logical_and.reduce([self._compare(*pair) for pair in pairs])
            return held
        name = _dotted(node)
        if name is not None and self._column(name).dtype == bool:
            return self._column(name).to_numpy(dtype=bool)
        raise self._refused(node)

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Mask:
        one, other = self._side(left), self._side(right)
        if isinstance(one, pd.Series) == isinstance(other, pd.Series):
            raise self._refused(left, "a column is compared with a constant")
        if isinstance(op, (ast.In, ast.NotIn)):
            if not isinstance(one, pd.Series) or not isinstance(other, list):
                raise self._refused(right, "`in` has a column before it and a list behind")
            found: Mask = np.logical_or.reduce(
                [np.zeros(len(one), dtype=bool), *(_compared(one, operator.eq, v) for v in other)]
            )
            return ~found if isinstance(op, ast.NotIn) else found
        if type(op) not in _COMPARE or isinstance(one, list) or isinstance(other, list):
            raise self._refused(left)
        compare = _COMPARE[type(op)]
        if isinstance(one, pd.Series):
            return self._typed(one, compare, other, right)
        return self._typed(other, lambda a, b: compare(b, a), one, left)

    def _typed(
        self, column: Any, compare: Callable[[Any, Any], Any], constant: Any, node: ast.expr
    ) -> Mask:
        try:
            return _compared(column, compare, constant)
        except TypeError as error:
            raise self._refused(
                node, f"{column.name} holds {column.dtype}, which it is not compared with"
            ) from error

    def _side(self, node: ast.expr) -> Any:
        if isinstance(node, (ast.List, ast.Tuple)):
            values = [self._side(value) for value in node.elts]
            if any(isinstance(value, (pd.Series, list)) for value in values):
                raise self._refused(node, "a list holds constants")
            return values
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float)):
            return node.value  # bool is an int
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            value = self._side(node.operand)
            if isinstance(value, (int, float)):
                return -value if isinstance(node.op, ast.USub) else value
        name = _dotted(node)
        if name is None:
            raise self._refused(node)
        return self._column(name)

    def _column(self, name: str) -> pd.Series[Any]:
        if name not in self.frame.columns:
            raise refuse("where", self.text, f"no column {name}", self.names, name)
        column: pd.Series[Any] = self.frame[name]
        return column

    def _refused(self, node: ast.expr, why: str = "") -> ResultsError:
        return ResultsError(
            f"where={self.text}: `{ast.unparse(node)}` is not allowed{f' ({why})' if why else ''}; "
            "allowed: and, or, not, ==, !=, <, <=, >, >=, in and not in, between constants and "
            f"the columns {', '.join(self.names)}"
        )


def _compared(column: Any, compare: Callable[[Any, Any], Any], constant: Any) -> Mask:
    """A text column against a number compares as numbers: factors are texts, `1e-4` like `0.0001`.

    What is missing equals nothing and is different from everything, as in pandas.
    """
    numeric = pd.api.types.is_numeric_dtype(column.dtype)
    if not numeric and not isinstance(constant, str):
        column = pd.to_numeric(column.astype("object"), errors="coerce")
    elif numeric and isinstance(constant, str) and compare not in (operator.eq, operator.ne):
        raise TypeError
    if isinstance(column.dtype, pd.CategoricalDtype):
        table = np.asarray(compare(np.asarray(column.cat.categories, dtype=object), constant))
        found: Mask = np.append(table, compare is operator.ne).astype(bool)[column.cat.codes]
        return found
    values = compare(column, constant)
    missing = compare is operator.ne
    return np.where(column.isna(), missing, values.fillna(missing).astype(bool)).astype(bool)
