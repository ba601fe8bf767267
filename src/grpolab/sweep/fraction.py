"""Fractional factorials of two-level factors: generators, runs, defining relation, aliases.

An effect is a set of factors, held as a bitmask: bit i stands for factor i, so that the product of
two effects is their exclusive or. A word of the defining relation is an effect that is the same
(+) in every run; the resolution is the length of the shortest one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

MOST_FACTORS = 12
"""2^8 runs at resolution V; up to here the search for generators takes no time."""
ROMAN = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII")


@dataclass(frozen=True)
class Fraction:
    """2^base runs: the first `base` factors cross fully, each further one is the product of those
    in its generator."""

    base: int
    generators: tuple[int, ...] = ()

    @property
    def factors(self) -> int:
        """k."""
        return self.base + len(self.generators)

    def runs(self) -> list[list[bool]]:
        """[2^base][k] whether a factor is at its other choice. The first run is all at the
        baseline, and the last base factor changes fastest."""
        found = []
        for row in itertools.product((False, True), repeat=self.base):
            on = sum(1 << i for i, value in enumerate(row) if value)
            found.append([*row, *((on & g).bit_count() % 2 == 1 for g in self.generators)])
        return found

    def defining_words(self) -> list[int]:
        """All words of the defining relation but I, the shortest first."""
        words = [0]
        for i, generator in enumerate(self.generators):
            words += [w ^ generator ^ (1 << (self.base + i)) for w in words]
        return sorted(words[1:], key=lambda w: (w.bit_count(), w))

    @property
    def resolution(self) -> int | None:
        """The length of the shortest word; None where all combinations run."""
        words = self.defining_words()
        return words[0].bit_count() if words else None

    def aliases(self) -> dict[int, list[int]]:
        """Of each main effect and each interaction of two factors, the others of these that cannot
        be told from it; effects that stand alone are left out."""
        effects = [1 << i for i in range(self.factors)]
        effects += [a | b for a, b in itertools.combinations(effects, 2)]
        words, known = self.defining_words(), set(effects)
        found = {e: [e ^ w for w in words if e ^ w in known] for e in effects}
        return {e: sorted(others, key=effects.index) for e, others in found.items() if others}

    def about(self, keys: Sequence[str]) -> list[str]:
        """Size, defining relation and aliases in sentences; `keys` names the factors."""
        k, p = self.factors, len(self.generators)
        if self.resolution is None:
            return [f"All {2**k} combinations of {k} factors: no two effects are aliased."]
        relation = " = ".join(["I", *(name(w, keys) for w in self.defining_words())])
        return [
            f"{2**self.base} of {2**k} combinations of {k} factors: 2^({k}-{p}), resolution "
            f"{ROMAN[self.resolution]}.",
            f"Defining relation: {relation} (the product of these factors' signs is + in every "
            "run; + is the baseline's choice, - the other).",
            *self._alias_sentences(keys),
        ]

    def _alias_sentences(self, keys: Sequence[str]) -> list[str]:
        aliases = self.aliases()
        if not aliases:
            return ["Main effects and interactions of two factors: none aliased with another."]
        mains = any(e.bit_count() == 1 for e in aliases)
        clear = [] if mains else ["Main effects: aliased with nothing of order two or less."]
        told: set[int] = set()
        for effect, others in aliases.items():
            if effect not in told:
                told |= {effect, *others}
                chain = " = ".join(name(e, keys) for e in (effect, *others))
                clear.append(f"Aliased, so that one estimate stands for the sum of all: {chain}.")
        return clear


def name(effect: int, keys: Sequence[str]) -> str:
    """An effect by its factors: clip·kl."""
    return "·".join(key for i, key in enumerate(keys) if effect >> i & 1)


@cache
def smallest(factors: int, resolution: int) -> Fraction:
    """The fewest runs that have at least this resolution; of those the highest resolution."""
    for base in range(1, factors):
        for least in range(min(base + 1, factors), resolution - 1, -1):
            generators = search(base, factors - base, least)
            if generators is not None:
                return Fraction(base, generators)
    return Fraction(factors)


def search(base: int, count: int, least: int) -> tuple[int, ...] | None:
    """`count` generators over `base` factors without a word shorter than `least`; None where there
    are none. The first in the order AB, AC, BC, ABC, AD, … (ascending masks)."""
    candidates = [g for g in range(1, 1 << base) if g.bit_count() >= least - 1]

    def extend(chosen: tuple[int, ...], words: list[int], start: int) -> tuple[int, ...] | None:
        if len(chosen) == count:
            return chosen
        for i in range(start, len(candidates) - (count - len(chosen)) + 1):
            own = candidates[i] | 1 << (base + len(chosen))
            longer = [own ^ w for w in words]
            if min(w.bit_count() for w in longer) >= least:
                found = extend((*chosen, candidates[i]), words + longer, i + 1)
                if found is not None:
                    return found
        return None

    return extend((), [0], 0)
