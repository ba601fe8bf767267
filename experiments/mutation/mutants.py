"""Mutants of formula code: small wrong edits, found by reading a module's syntax tree.

A mutant replaces one span of the source and leaves every other character as it was, so that a
survivor reads as a one-line diff.
"""

from __future__ import annotations

import ast
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """One wrong edit of one module."""

    module: str
    """Path below the package, such as "objective/kl.py"."""
    function: str
    """Qualified name of the class or function it lies in, "" at the top of the module."""
    line: int
    kind: str
    start: int
    """Byte span of the source that `text` replaces."""
    end: int
    text: str
    before: str
    after: str
    """The lines concerned, stripped."""

    @property
    def key(self) -> str:
        """What it is known by, however the lines around it move."""
        content = "\0".join([self.module, self.function, self.kind, self.before, self.after])
        return hashlib.sha256(content.encode()).hexdigest()[:10]

    def apply(self, source: bytes) -> bytes:
        """The mutated source."""
        return source[: self.start] + self.text.encode() + source[self.end :]


BINARY: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
COMPARED: dict[type[ast.cmpop], tuple[str, tuple[str, ...]]] = {
    ast.Lt: ("<", ("<=", ">")),
    ast.LtE: ("<=", ("<", ">=")),
    ast.Gt: (">", (">=", "<")),
    ast.GtE: (">=", (">", "<=")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
}
RENAMED = {
    "min": "max", "max": "min", "amin": "amax", "amax": "amin", "minimum": "maximum",
    "maximum": "minimum", "sum": "mean", "mean": "sum", "any": "all", "all": "any",
    "zeros_like": "ones_like", "ones_like": "zeros_like", "sin": "cos", "cos": "sin",
}  # fmt: skip
ONLY_METHODS = {"sum", "mean"}  # `mean(…)` is no builtin: that mutant would die of its name
DROPPED = {
    "detach", "detached", "clamp", "clip", "square", "abs", "sqrt", "exp", "log", "log1p", "expm1",
    "sigmoid", "flip", "cumsum", "sort", "softmax", "log_softmax",
}  # fmt: skip
FIRST_ARGUMENT = {"valid": "{0}", "safe_exp": "({0}).exp()"}
"""Helpers whose whole point is a guard: the call is replaced by what it guards."""
SHAPES = {"expand", "new_full", "new_zeros", "new_ones"}
"""Calls whose numbers are sizes: a wrong one raises at once and says nothing about a formula."""
CHECKS = ("__post_init__", "check_")
"""Functions that validate settings: no formulas, left out unless asked for."""


def find_mutants(root: Path, module: str, *, checks: bool = False) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines.

    Args:
        root: the package's folder.
        module: path below it.
        checks: also those of the functions that validate settings.
    """
    finder = _Finder(module, (root / module).read_bytes(), checks)
    finder.visit(ast.parse(finder.source))
    unique = {(m.start, m.end, m.text): m for m in finder.found}
    return sorted(unique.values(), key=lambda m: (m.start, m.end, m.text))


class _Finder(ast.NodeVisitor):
    def __init__(self, module: str, source: bytes, checks: bool) -> None:
        self.module, self.source, self.checks = module, source, checks
        self.scope: list[str] = []
        self.found: list[Mutant] = []
        lengths = [len(line) for line in source.splitlines(keepends=True)]
        self.starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]

    # -- spans of the source -------------------------------------------------------------------

    def span(self, node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self.starts[node.lineno - 1] + node.col_offset,
            self.starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def text(self, node: ast.expr) -> str:
        start, end = self.span(node)
        return self.source[start:end].decode()

    def add(self, kind: str, start: int, end: int, text: str) -> None:
        first = self.source.rfind(b"\n", 0, start) + 1
        last = self.source.find(b"\n", end)
        last = len(self.source) if last < 0 else last
        after = self.source[first:start] + text.encode() + self.source[end:last]
        self.found.append(
            Mutant(
                module=self.module,
                function=".".join(self.scope),
                line=self.source.count(b"\n", 0, start) + 1,
                kind=kind,
                start=start,
                end=end,
                text=text,
                before=_flat(self.source[first:last]),
                after=_flat(after),
            )
        )

    def between(self, kind: str, left: ast.expr, right: ast.expr, old: str, new: str) -> None:
        """Replaces the operator that stands between two operands."""
        start, end = self.span(left)[1], self.span(right)[0]
        gap = re.sub(rb"#[^\n]*", lambda m: b" " * len(m[0]), self.source[start:end])
        place = gap.find(old.encode())
        if place >= 0:
            self.add(kind, start + place, start + place + len(old), new)

    def replace(self, kind: str, node: ast.expr, text: str) -> None:
        self.add(kind, *self.span(node), text)

    # -- where formulas are, and where none are ------------------------------------------------

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._inside(node.name, node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if self.checks or not node.name.startswith(CHECKS):
            defaults = [d for d in (*node.args.defaults, *node.args.kw_defaults) if d is not None]
            self._inside(node.name, [*defaults, *node.body])

    def _inside(self, name: str, nodes: list[ast.stmt] | list[ast.AST]) -> None:
        self.scope.append(name)
        for node in nodes:
            self.visit(node)
        self.scope.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, bool):
            self.replace("fact", node.value, str(not node.value.value))
        elif node.value is not None:
            self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Messages are no formulas."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """Nor are assertions for the type checker."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Nor is text."""

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not isinstance(node.value, ast.Name) or not node.value.id[0].isupper():  # Mapping[…]
            self.generic_visit(node)

    # -- the wrong edits -----------------------------------------------------------------------

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in BINARY and not any(map(_is_text, (node.left, node.right))):
            self.between("operator", node.left, node.right, *BINARY[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in BINARY:
            old, new = BINARY[type(node.op)]
            self.between("operator", node.target, node.value, f"{old}=", f"{new}=")
        self.visit(node.value)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if not isinstance(node.op, ast.UAdd):
            kind = "sign" if isinstance(node.op, ast.USub) else "negation"
            self.replace(kind, node, self.text(node.operand))
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            old, others = COMPARED.get(type(op), ("", ()))
            for new in others:
                self.between("comparison", left, right, old, new)
            left = right
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values[:-1], node.values[1:], strict=True):
            self.between("logic", left, right, old, new)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        self._condition(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._condition(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self._condition(node.test)
        self.generic_visit(node)

    def _condition(self, test: ast.expr) -> None:
        if not isinstance(test, ast.BoolOp | ast.UnaryOp):
            mutated = isinstance(test, ast.Compare) and type(test.ops[0]) in COMPARED
            if not mutated:  # `is None`, `in`, a name or a call
                self.replace("condition", test, f"not ({self.text(test)})")

    def visit_Constant(self, node: ast.Constant) -> None:
        number = _other_number(node.value)
        if number is not None:
            self.replace("constant", node, number)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg == "dim" and isinstance(node.value, ast.Constant):
            self.replace("dim", node.value, "1" if node.value.value == 0 else "0")
        elif node.arg == "dim" and isinstance(node.value, ast.UnaryOp):
            self.replace("dim", node.value, "0")
        else:
            self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        name = _name(node.func)
        if name == "setting":
            self._default(node)
            return
        if name in RENAMED and not (isinstance(node.func, ast.Name) and name in ONLY_METHODS):
            end = self.span(node.func)[1]
            self.add("function", end - len(name), end, RENAMED[name])
        if name in DROPPED:
            self._drop(node)
        if name in FIRST_ARGUMENT and isinstance(node.func, ast.Name) and node.args:
            self.replace("guard", node, FIRST_ARGUMENT[name].format(self.text(node.args[0])))
        if name == "where" and len(node.args) == 3:
            condition, first, second = map(self.text, node.args)
            called = self.text(node.func)
            self.replace("branches", node, f"{called}({condition}, {second}, {first})")
        if name in SHAPES:
            self.visit(node.func)
            return
        if name == "clamp":
            for keyword in node.keywords:
                if keyword.arg in ("min", "max"):
                    start = self.span(keyword.value)[0] - 4
                    self.add("function", start, start + 3, RENAMED[keyword.arg])
        self.generic_visit(node)

    def _drop(self, node: ast.Call) -> None:
        assert isinstance(node.func, ast.Attribute | ast.Name)
        if isinstance(node.func, ast.Name) or _name(node.func.value) in ("torch", "F", "math"):
            if node.args:
                self.replace("call", node, f"({self.text(node.args[0])})")
        else:
            name = self.span(node.func)[1] - len(node.func.attr)
            self.add("call", self.source.rfind(b".", 0, name), self.span(node)[1], "")

    def _default(self, node: ast.Call) -> None:
        default = node.args[0]
        if isinstance(default, ast.Constant):
            other = "0" if default.value == 1 else _other_number(default.value)
            if isinstance(default.value, bool):
                self.replace("default", default, str(not default.value))
            elif other is not None:
                self.replace("default", default, other)
        else:
            before = len(self.found)
            self.visit(default)
            self.found[before:] = [_as_default(m) for m in self.found[before:]]


def _as_default(mutant: Mutant) -> Mutant:
    return Mutant(**{**vars(mutant), "kind": "default"})


def _other_number(value: object) -> str | None:
    """1 → 2, 10000 → 20000, ε → 10ε, .2 → .3, 5.0 → 6.0; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        return str(value + 1 if value < 10 else 2 * value)
    if 0 < value < 1e-2:
        return repr(float(f"{10 * value:.12g}"))
    return repr(round(value + (0.1 if 0 < value < 1 else 1.0), 10))


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_text(node: ast.expr) -> bool:
    text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return text or isinstance(node, ast.JoinedStr)


def _flat(line: bytes) -> str:
    return " ".join(line.decode().split())
