"""Stop strings: where the text of a completion, as its tokens come, first holds one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

INCOMPLETE = "\ufffd"  # what a decoder writes for a character whose bytes are not all there


class Tail:
    """The text of one completion, no further back than a stop string can reach.

    A token has no text of its own: its first space, or its share of a character's bytes, depends
    on its neighbours. So the newest tokens are decoded together with those settled just before,
    and what the latter give alone is taken off. Tokens that end inside a character stay unsettled
    until the rest has come.
    """

    def __init__(self, stop: Sequence[str], decode: Callable[[list[int]], str]) -> None:
        self.stop, self.decode = stop, decode
        self.reach = max(len(s) for s in stop) - 1
        self.text = ""  # the last `reach` settled characters
        self.context: list[int] = []  # the tokens that settled last
        self.unsettled: list[int] = []

    def completes(self, token: int) -> bool:
        """Whether this token, the next, completes a stop string."""
        self.unsettled.append(token)
        known = self.decode(self.context) if self.context else ""
        decoded = self.decode(self.context + self.unsettled)
        text = self.text + decoded[len(known) :]
        if len(decoded) > len(known) and not decoded.endswith(INCOMPLETE):
            self.text = text[-self.reach :] if self.reach else ""
            self.context, self.unsettled = self.unsettled, []
        return any(s in text for s in self.stop)


class Stops:
    """Where stop strings end N completions."""

    def __init__(self, stop: Sequence[str], tokenizer: Any, rows: int) -> None:
        def decode(ids: list[int]) -> str:
            text: str = tokenizer.decode(
                ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            return text

        self.tails = [Tail(stop, decode) for _ in range(rows)]
        self.seen = [0] * rows
        self.at = [-1] * rows

    def feed(self, row: int, tokens: Iterable[int]) -> bool:
        """Whether a row has ended, after its next tokens. Those behind its end are not read."""
        for token in tokens:
            if self.at[row] >= 0:
                break
            if self.tails[row].completes(token):
                self.at[row] = self.seen[row]
            self.seen[row] += 1
        return self.at[row] >= 0

    def places(self, device: torch.device) -> Tensor:
        """[N] place of the token that completes a stop string, −1 where none has."""
        return torch.tensor(self.at, device=device)
