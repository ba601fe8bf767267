"""The rewards that TRL has too, number for number."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpolab.component import component
from grpolab.rewards.base import RewardInputs
from grpolab.tasks.base import Example, Examples, Task

trl = pytest.importorskip("trl.rewards")


class Given(Task):
    """A task whose verifier is told what to say."""

    def __init__(self, verdicts: Sequence[float | None]) -> None:
        object.__setattr__(self, "verdicts", verdicts)

    def load(self) -> Examples:
        raise NotImplementedError

    def verify(self, completion: str, example: Example) -> float:
        verdict: float | None = self.verdicts[example.meta["row"]]  # type: ignore[attr-defined]
        return math.nan if verdict is None else verdict


def inputs(
    completions: Sequence[str],
    golds: Sequence[str] | None = None,
    ids: Sequence[Sequence[int]] | None = None,
    verdicts: Sequence[float | None] = (),
) -> RewardInputs:
    tokens = ids if ids is not None else [[0]] * len(completions)
    return RewardInputs(
        completions=completions,
        examples=[Example("", g, {"row": i}) for i, g in enumerate(golds or [""] * len(tokens))],
        task=Given(verdicts),
        lengths=[len(row) for row in tokens],
        truncated=[False] * len(tokens),
        max_length=10**6,
        tokens=lambda: tokens,
    )


def chats(completions: Sequence[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in completions]


def same(ours: Sequence[float], theirs: Sequence[float | None]) -> None:
    assert ours == pytest.approx(
        [math.nan if score is None else score for score in theirs], nan_ok=True, abs=1e-12
    )


rows = st.lists(st.lists(st.integers(0, 3), max_size=40), min_size=1, max_size=6)


@given(ids=rows, longest=st.integers(1, 40), share=st.floats(0, 1))
def test_soft_overlong(ids: list[list[int]], longest: int, share: float) -> None:
    cache = int(share * longest)
    ours = component("reward", "soft_overlong", max_length=longest, cache=cache)
    theirs = trl.get_soft_overlong_punishment(longest, cache)
    same(ours(inputs([""] * len(ids), ids=ids)).total, theirs(completion_ids=ids))


def test_soft_overlong_at_dapos_size() -> None:
    ids = [range(n) for n in (0, 16383, 16384, 16385, 18432, 20479, 20480, 20481, 30000)]
    ours = component("reward", "soft_overlong", max_length=20480)
    theirs = trl.get_soft_overlong_punishment(20480, 4096)
    same(ours(inputs([""] * len(ids), ids=ids)).total, theirs(completion_ids=ids))


@given(ids=rows, n=st.integers(1, 6), penalty=st.floats(-5, 0))
def test_repetition_of_tokens(ids: list[list[int]], n: int, penalty: float) -> None:
    ours = component("reward", "repetition", n=n, penalty=penalty, of="tokens")
    theirs = trl.get_repetition_penalty_reward(n, penalty)
    same(ours(inputs([""] * len(ids), ids=ids)).total, theirs(completion_ids=ids))


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    bounds=st.lists(st.floats(-5, 5), min_size=4, max_size=4),
    data=st.data(),
)
@settings(deadline=None, max_examples=25)
def test_cosine(lengths: list[int], bounds: list[float], data: st.DataObject) -> None:
    pytest.importorskip("math_verify")
    kinds = data.draw(st.lists(st.sampled_from("rwu"), min_size=len(lengths)))[: len(lengths)]
    golds = ["" if kind == "u" else "7" for kind in kinds]
    texts = [r"\boxed{7}" if kind == "r" else r"\boxed{8}" for kind in kinds]
    verdicts = [{"r": 1.0, "w": 0.0, "u": None}[kind] for kind in kinds]
    ids = [[0] * n for n in lengths]
    wrong_low, wrong_high, right_low, right_high = bounds
    theirs = trl.get_cosine_scaled_reward(50, wrong_low, wrong_high, right_low, right_high)
    ours = component(
        "reward", "cosine_length", max_length=50, wrong_short=wrong_low, wrong_long=wrong_high,
        correct_long=right_low, correct_short=right_high,
    )  # fmt: skip
    same(
        ours(inputs(texts, golds, ids, verdicts)).total,
        theirs(completions=chats(texts), solution=golds, completion_ids=ids),
    )


def test_cosine_by_default() -> None:
    pytest.importorskip("math_verify")
    ids = [[0] * n for n in range(0, 130, 5)]
    for answer, verdict in (("7", 1.0), ("8", 0.0)):
        texts, golds = [rf"\boxed{{{answer}}}"] * len(ids), ["7"] * len(ids)
        theirs = trl.get_cosine_scaled_reward(100)
        ours = component("reward", "cosine_length", max_length=100)
        same(
            ours(inputs(texts, golds, ids, [verdict] * len(ids))).total,
            theirs(completions=chats(texts), solution=golds, completion_ids=ids),
        )


THINK = r"(?s)<think>(?!.*<think>).*?</think>.*"
pieces = st.lists(st.sampled_from(["<think>", "</think>", "\n", "a", " ", "<think", ">"]))


@given(texts=st.lists(pieces.map("".join), min_size=1, max_size=5))
def test_the_think_format(texts: list[str]) -> None:
    fixed = ["<think>a</think>b", "<think>a", " <think>a</think>", "<think>\n</think>\n\n"]
    ours = component("reward", "format", pattern=THINK)
    same(ours(inputs(fixed + texts)).total, trl.think_format_reward(chats(fixed + texts)))


# --- accuracy_reward -----------------------------------------------------------------------------

ANSWERS = [
    "42", "-42", "0", "007", "1,234", "1,234,567.5", "3.14", "-0.5", ".5", "1/2", "-3/4", "10/4",
    "2^10", "(1+2)*3", "7 - 3", "2.50", "100",
]  # fmt: skip
LATEX = [
    r"\frac{1}{2}", r"\frac{10}{4}", r"\dfrac{3}{7}", r"-\frac{3}{4}", r"\sqrt{8}", r"2\sqrt{2}",
    r"x^2+3x+2", r"(x+1)(x+2)", r"[1,2)", r"(-\infty,2)\cup(3,\infty)", r"\{1,2,3\}", r"3,1,2",
    r"x=5", r"x>5", r"5<x", r"3+4i", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\text{Evelyn}",
    r"90^\circ", r"5\text{ cm}", r"\pi", r"\frac12", r"11\sqrt2", r"5 \pm 2", r"10^{-3}", r"7!",
    r"\log_2 8", r"", r"\frac{1}{", r"?!",
]  # fmt: skip
FORMS = [
    r"So it is \boxed{@}.", "The answer is $@$.", "Final answer is $@$. I hope it is correct.",
    "$@$", "@", r"\boxed{@} because $1$", r"$2$, then \[ \boxed{@} \]", r"\boxed{1}. Answer: $@$",
]  # fmt: skip


def problems(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Completions in many forms with gold answers, half of them the same answer."""
    source = random.Random(seed)
    completions, golds = [], []
    for _ in range(count):
        gold = source.choice(ANSWERS + LATEX)
        answer = gold if source.random() < 0.5 else source.choice(ANSWERS + LATEX)
        marked = gold if gold in ANSWERS else source.choice(["$@$", r"\boxed{@}", "@"])
        golds.append(marked.replace("@", gold))
        completions.append(source.choice(FORMS).replace("@", answer))
    return completions, golds


def test_accuracy() -> None:
    """With `gold` text, TRL's own way. Without percent signs: with the ANTLR that OmegaConf holds,
    the parser under TRL fails on every one of them, and ours does not."""
    pytest.importorskip("math_verify")
    completions, golds = problems(300, seed=0)
    theirs = trl.accuracy_reward(chats(completions), golds)
    same(component("reward", "math_verify", gold="text")(inputs(completions, golds)).total, theirs)
    # All three verdicts are there, or the comparison would say little.
    assert min(theirs.count(1.0), theirs.count(0.0), theirs.count(None)) > 20


def test_reasoning_accuracy() -> None:
    pytest.importorskip("math_verify")
    completions, golds = problems(200, seed=1)
    source = random.Random(2)
    forms = ["<think>so</think>@", "<think>@", "<think>@</think>", r"a</think>\boxed{1}</think>@"]
    completions = [source.choice(forms).replace("@", text) for text in completions]
    # TRL scores an unfinished thought 0 before it looks at the gold answer.
    golds = [
        gold if "</think>" in text else "7" for text, gold in zip(completions, golds, strict=True)
    ]
    ours = component("reward", "math_verify", gold="text", after="</think>")
    theirs = trl.reasoning_accuracy_reward(chats(completions), golds)
    same(ours(inputs(completions, golds)).total, theirs)
    assert min(theirs.count(1.0), theirs.count(0.0)) > 10


def test_verls_reading() -> None:
    """verl reads the gold answer whole, and plain numbers with math-verify's own patterns (which
    evaluate them as Python)."""
    math_verify = pytest.importorskip("math_verify")
    latex, plain = math_verify.LatexExtractionConfig(), math_verify.ExprExtractionConfig()
    completions, golds = problems(250, seed=3)
    source = random.Random(4)
    forms = ["so it is @", "@ is it", "The answer is @.", "x = @", "first 3, then @ apples", "@"]
    for i in range(0, 250, 2):
        answer = source.choice([*ANSWERS, golds[i]])
        completions[i] = source.choice(forms).replace("@", answer)
    theirs: list[float | None] = []
    for completion, gold in zip(completions, golds, strict=True):
        wanted = math_verify.parse(rf"\boxed{{{gold}}}", [latex])
        found = math_verify.parse(completion, [plain, latex])
        theirs.append(float(math_verify.verify(wanted, found)) if wanted else None)
    ours = component(
        "reward", "math_verify", anchored=False, boxed_first=False, plain=True, candidates="any",
        repair=True,
    )  # fmt: skip
    same(ours(inputs(completions, golds)).total, theirs)
    assert min(theirs.count(1.0), theirs.count(0.0)) > 40


def test_mixtures_with_missing_parts() -> None:
    """TRL's sum: of what there is, unscorable where there is nothing."""
    import torch

    parts = torch.tensor([[1.0, 2.0], [math.nan, 2.0], [1.0, math.nan], [math.nan, math.nan]])
    weights = torch.tensor([0.5, -2.0])
    total = (parts * weights).nansum(dim=1)  # as in TRL's trainer
    total[parts.isnan().all(dim=1)] = torch.nan
    names = {str(i): row for i, row in enumerate(parts.tolist())}
    ours = component(
        "reward", "mixture", missing="skip",
        parts={
            label: {"name": "python", "function": "math:fsum", "weight": float(weight)}
            for label, weight in zip("ab", weights, strict=True)
        },
    )  # fmt: skip
    given = inputs(list(names))
    columns = iter(parts.T.tolist())
    for reward in ours._rewards.values():
        column = next(columns)
        reward.__dict__["_function"] = lambda text, example, column=column: column[int(text)]
    same(ours(given).total, total.tolist())
