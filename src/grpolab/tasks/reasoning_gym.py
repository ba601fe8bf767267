"""Generated puzzles of Reasoning Gym (arXiv 2505.24760), with the library's own verifiers."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from grpolab.objective.settings import setting
from grpolab.tasks.base import Example, Examples, Task, TaskError
from grpolab.tasks.tables import did_you_mean

logger = logging.getLogger(__name__)

# Draws for each prompt wanted, first and then if too many of them are repetitions.
ROUNDS = (2, 20)

_LIST = re.compile(r"[\s\[\]0-9A-Z_.,'\"-]{0,4000}")
_ARITHMETIC = re.compile(r"(?!.*\*\s*\*)[\s0-9+\-*/().]{0,400}", re.DOTALL)

# Verifiers that run the answer as Python code (eval, or sympy.parse_expr, which calls it). A model
# writes the answer, so it reaches them only if it is made of characters that can do nothing: lists
# of literals, without parentheses to call; arithmetic without names and without powers to blow up.
ALPHABETS: dict[str, re.Pattern[str]] = {
    "binary_matrix": _LIST,
    "n_queens": _LIST,
    "spiral_matrix": _LIST,
    "string_insertion": _LIST,
    "countdown": _ARITHMETIC,
    "puzzle24": _ARITHMETIC,
}
# Their answers need names and calls, which no such alphabet can make safe.
REFUSED = ("intermediate_integration", "polynomial_multiplication", "simple_integration")

_TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w)\].])[-+]?[0-9][0-9,]*(?:\.[0-9]+)?|[0-9][0-9,]*(?:\.[0-9]+)?")


@dataclass(frozen=True)
class ReasoningGym(Task):
    """One generator of the `reasoning_gym` package, with its own verifier.

    Train and held-out prompts are two parts of one draw and have no question in common. The draw
    depends on these settings alone, and leaves the global random streams as they were.

    The verifier is the generator's `score_answer`, given what `extract` takes from the completion.
    Many generators give partial credit (0.01 for a wrong answer); accuracy counts a score of 1.
    Generators whose verifier would run the answer as code get it only if it is a plain list or
    plain arithmetic; three whose answers cannot be limited like that are refused (`REFUSED`).

    Raises (from `load`):
        TaskError: the package is missing, an unknown or refused generator, a config that it does
            not take, fewer different questions than asked for.
    """

    name: ClassVar[str] = "reasoning_gym"

    dataset: str = setting("chain_sum", "Name of the generator.")
    config: dict[str, Any] = setting({}, "The generator's own settings (not seed and size).")
    train_size: int = setting(512, "Training prompts.", ge=1)
    held_out_size: int = setting(128, "Held-out prompts.", ge=0)
    data_seed: int = setting(0, "Seed of the generator; the run's seed plays no part.", ge=0)
    extract: Literal["last_number", "last_line", "tags", "full"] = setting(
        "last_number", "What of the completion is the answer; tags: inside <answer></answer>."
    )

    def __post_init__(self) -> None:
        for key, instead in (("seed", "data_seed"), ("size", "train_size and held_out_size")):
            if key in self.config:
                raise ValueError(
                    f"config: {key}={self.config[key]!r} is not set here; allowed: {instead}"
                )

    def load(self) -> Examples:
        """Generate the prompts; TaskError names the setting that does not fit."""
        wanted = self.train_size + self.held_out_size
        with quiet_random_state(self.data_seed):
            for draws in (rounds * wanted for rounds in ROUNDS):
                examples = self._draw(wanted, draws)
                if len(examples) == wanted:
                    break
            else:
                raise TaskError(
                    f"task.train_size={self.train_size} with task.held_out_size="
                    f"{self.held_out_size} needs {wanted} different questions, but task.dataset="
                    f"{self.dataset} gave {len(examples)} in {draws} draws; allowed: fewer, or a "
                    "task.config with more variety"
                )
        source = f"reasoning_gym {self.dataset} {self.config} with seed {self.data_seed}"
        return Examples(examples[: self.train_size], examples[self.train_size :], source)

    def verify(self, completion: str, example: Example) -> float:
        """The generator's own score in [0, 1]; NaN (logged) where its verifier fails."""
        entry = example.meta["entry"]
        answer = harmless(self.extracted(completion), _generator(entry, self.dataset))
        try:
            return min(1.0, max(0.0, float(self._verifier.score_answer(answer, entry))))
        except Exception:
            logger.debug("verifier of %s failed on %r", self.dataset, answer, exc_info=True)
            return math.nan

    def extracted(self, completion: str) -> str | None:
        """The part of a completion that is the answer, None where it has none."""
        if self.extract == "full":
            return completion.strip()
        if self.extract == "last_line":
            return next((s.strip() for s in reversed(completion.splitlines()) if s.strip()), None)
        pattern = _TAGS if self.extract == "tags" else _NUMBER
        found = pattern.findall(completion.replace("\u2212", "-"))
        return found[-1].strip().rstrip(",") if found else None

    @cached_property
    def _verifier(self) -> Any:
        """A data set of one example: score_answer needs the settings, not the examples."""
        with quiet_random_state(self.data_seed):
            return self._create(1)

    def _draw(self, wanted: int, draws: int) -> list[Example]:
        """Up to `wanted` examples with different questions, out of `draws` draws."""
        dataset, found = self._create(draws), dict[str, Example]()
        for index in range(draws):
            if len(found) == wanted:
                break
            entry = dataset[index]
            self._check_allowed(_generator(entry, self.dataset))
            question, answer = entry["question"], entry["answer"]
            meta = {"entry": entry, "source": f"reasoning_gym {self.dataset} entry {index}"}
            # Some puzzles have many solutions and no stored one: only the verifier knows.
            gold = "" if answer is None else str(answer)
            found.setdefault(question, Example(question, gold, meta))
        return list(found.values())

    def _create(self, size: int) -> Any:
        """The generator; TaskError for a missing package, a wrong name or wrong settings."""
        try:
            package = importlib.import_module("reasoning_gym")
            known = importlib.import_module("reasoning_gym.factory").DATASETS
        except ImportError as error:
            raise TaskError(
                f"task=reasoning_gym needs the package reasoning_gym ({error}); install it with: "
                "pip install 'grpolab[reasoning-gym]'"
            ) from error
        self._check_allowed(self.dataset)
        if self.dataset not in known:
            raise TaskError(
                f"task.dataset={self.dataset!r}: reasoning_gym has no such generator; allowed: "
                f"{', '.join(sorted(known))}{did_you_mean(self.dataset, known)}"
            )
        try:
            return package.create_dataset(
                self.dataset, seed=self.data_seed, size=size, **self.config
            )
        except Exception as error:  # its checks are bare asserts
            raise TaskError(
                f"task.config={self.config!r}: the generator {self.dataset} does not take it "
                f"({type(error).__name__}: {error}); allowed: its own settings"
            ) from error

    def _check_allowed(self, generator: str) -> None:
        if generator in REFUSED:
            raise TaskError(
                f"task.dataset={self.dataset!r}: the verifier of {generator} runs the answer as "
                f"code; allowed: any generator but {', '.join(REFUSED)}"
            )


def harmless(answer: str | None, generator: str) -> str | None:
    """The answer, or None where the generator's verifier would run it and it is not plain."""
    alphabet = ALPHABETS.get(generator)
    if answer is None or alphabet is None or alphabet.fullmatch(answer):
        return answer
    return None


@contextlib.contextmanager
def quiet_random_state(seed: int) -> Iterator[None]:
    """Global streams of random and NumPy, seeded inside and as before afterwards.

    Importing reasoning_gym 0.1.25 moves the global stream of `random`, pool_matrix reseeds NumPy's,
    and list_functions draws from the global stream: without a seed it differs from run to run.
    """
    import numpy as np

    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def _generator(entry: dict[str, Any], dataset: str) -> str:
    """Which generator made the entry: a composite mixes several."""
    return str(entry.get("metadata", {}).get("source_dataset", dataset))
