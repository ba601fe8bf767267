r"""The helper process of the reward `math_verify`: text in, right or wrong out.

Alone in its process, so that it can be killed, and so that `prepare` may change what the parsing
packages do without changing it for anyone else.
"""

from __future__ import annotations

import importlib
import logging
import re
from functools import cache, lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from latex2sympy2_extended.antlr_parser import PSParser
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic, Float, Integer
from sympy.parsing import sympy_parser

from grpolab.rewards.isolated import serve

Parsed = list[Any]

# What SymPy makes of a number's digits before it evaluates them.
_LITERAL = re.compile(r"Integer \((?P<integer>\d+) \)|Float \('(?P<float>\d*\.?\d*)' \)")

_BRACES = r"\{(?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*\}"
_LATEX = (
    r"(?s:\$\$.+?\$\$)|(?<!\\)\$[^\n$]+(?<!\\)\$|(?s:\\\[.+?\\\])|\\\(.+?\\\)"
    rf"|\\[a-zA-Z]+(?:{_BRACES})*"
)
_NUMBER = r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|-?\.\d+"
_OPERATOR = r"\s*(?:\*\*|[-+*/^×÷])\s*"
_TERM = rf"-?\(*(?:{_NUMBER})\)*"
_PLAIN = re.compile(
    rf"(?P<latex>{_LATEX})"
    rf"|(?:(?<=[\s=])|^)(?:\*\*)?[$€£¥₹]?"
    # A sum ends where a word ends, a number anywhere: "2 - 3i" is no sum, and "10km" is 10.
    rf"(?P<plain>{_TERM}(?:{_OPERATOR}{_TERM})*(?=(?:\*\*)?(?:[.,:\s)$%]|\\%|$))|{_NUMBER})"
    r"(?P<percent>\s?(?:\\?%|percent\b|pct\b))?"
)


def judge(request: dict[str, Any]) -> float | None:
    """1.0 or 0.0; None where the gold answer holds no mathematics.

    `request` has the texts `gold` and `completion` and the settings of `MathVerify`.
    """
    gold = parsed_gold(request["gold"], request["read_gold"])
    if not gold:
        return None
    completion: str | None = request["completion"]
    if request["after"] is not None:
        _, found, completion = request["completion"].rpartition(request["after"])
        if not found:
            return 0.0
    answer = parsed_answer(str(completion), request)
    return float(verify(gold, answer, timeout_seconds=None))


@lru_cache(maxsize=1024)
def parsed_gold(gold: str, how: str) -> Parsed:
    """The gold answer as SymPy's objects and its text; empty where nothing can be read."""
    if how == "text":
        return _parse(plain_as_latex(gold), LatexExtractionConfig(), "any_match")
    return _parse(rf"\boxed{{{gold}}}", LatexExtractionConfig(), "any_match")


def parsed_answer(completion: str, settings: dict[str, Any]) -> Parsed:
    """The same of a completion's answer, found as the settings say."""
    if settings["plain"]:
        completion = plain_as_latex(completion)
    config = _answer_config(settings["anchored"], settings["boxed_first"], settings["repair"])
    mode = "first_match" if settings["candidates"] == "first" else "any_match"
    return _parse(completion, config, mode)


@cache
def _answer_config(anchored: bool, boxed_first: bool, repair: bool) -> LatexExtractionConfig:
    return LatexExtractionConfig(
        try_extract_without_anchor=not anchored,
        boxed_match_priority=0 if boxed_first else 50,
        normalization_config=NormalizationConfig(
            units=True, malformed_operators=repair, nits=repair
        ),
    )


def _parse(text: str, config: LatexExtractionConfig, mode: str) -> Parsed:
    found: Parsed = parse(text, [config], extraction_mode=mode, parsing_timeout=None)
    return found


def plain_as_latex(text: str) -> str:
    r"""`text` with its plain numbers and sums in dollars: "is 1/2." → "is $1/2$.".

    What stands in LaTeX already stays as it is. math-verify's own reader of plain expressions
    evaluates them as Python.
    """
    return _PLAIN.sub(_in_dollars, text)


def _in_dollars(match: re.Match[str]) -> str:
    if match["plain"] is None:
        return match[0]
    plain, rest = _balanced(match["plain"])
    latex = plain.replace("**", "^").replace("÷", "/")
    latex = re.sub(r"\s*[*×]\s*", r" \\cdot ", latex)
    latex = re.sub(r"\^\s*\(([^()]*)\)", r"^{\1}", latex)
    latex = re.sub(r"\^\s*(-?\d+)", r"^{\1}", latex)
    return f"${latex}${rest}{'%' if match['percent'] else ''}"


def _balanced(text: str) -> tuple[str, str]:
    """`text` up to a closing parenthesis that none has opened, and the rest."""
    depth = 0
    for position, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            return text[:position], text[position:]
    return text, ""


def prepare() -> None:
    """Make SymPy evaluate nothing, and work around a gap of latex2sympy2_extended.

    SymPy reads the digits of a number with `eval`; here they are parsed, and any other text that
    it would evaluate is refused. And latex2sympy2_extended 1.11 asks its grammar for a token that
    the grammar for ANTLR 4.9 (OmegaConf's version) lacks, so that every percent sign fails.
    """
    importlib.import_module("sympy.physics.units")  # simplifying imports it, and it evaluates names
    if not hasattr(sympy_parser, "eval_expr"):
        raise ImportError("this SymPy has no sympy_parser.eval_expr to take the place of")
    sympy_parser.eval_expr = number_literal
    if not hasattr(PSParser.AtomContext, "FUNC_GAMMA"):
        PSParser.AtomContext.FUNC_GAMMA = lambda self: None
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of having no time limit


def number_literal(code: Any, *_: Any) -> Basic:
    """The number that SymPy's own code for it stands for; ValueError for any other code."""
    match = _LITERAL.fullmatch(code.strip()) if isinstance(code, str) else None
    if match is None:
        raise ValueError(f"{code!r} is no number, and nothing else is evaluated")
    return Integer(int(match["integer"])) if match["integer"] else Float(match["float"])


def warm_up() -> None:
    """Judge once: the first time takes half a second, which no time limit should count."""
    verify(parsed_gold("x^2+x", "whole"), parsed_gold("x(x+1)", "text"), timeout_seconds=None)


if __name__ == "__main__":
    prepare()
    warm_up()
    serve(judge)
