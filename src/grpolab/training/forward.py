"""Forward passes over rollouts: micro-batches, their tensors, and log-probabilities."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from grpolab.config import Run
from grpolab.policy.policy import Policy, TokenLogps
from grpolab.policy.sharding import local
from grpolab.rollouts import Rollouts
from grpolab.training.failures import TrainingFailed
from grpolab.training.memory import is_out_of_memory, problem_of, token_budget

Found = TypeVar("Found")
PER_TOKEN = ("completion_ids", "mask", "sampler_logps", "sampler_policy_logps")
WHERE_KNOWN = ("old_logps", "ref_logps")


class Forward:
    """The trained policy and its reference, run over rows of rollouts."""

    def __init__(self, run: Run, policy: Policy) -> None:
        self.run, self.policy = run, policy
        self.uses_reference = run.kl.needs_reference
        keeps_model = self.uses_reference and run.reference.needs_model
        self.reference: Any = policy.frozen_copy() if keeps_model else None
        self.budget = token_budget(run.hardware, policy)
        """Tokens of a micro-batch; running out of memory halves it for the rest of the run."""

    @torch.no_grad()
    def move_reference(self, step: int) -> None:
        """Blends the policy into the reference where `reference` says so after so many steps."""
        share = self.run.reference.mix(step)
        if share is None or self.reference is None:
            return
        pairs = zip(self.reference.parameters(), self.policy.model.parameters(), strict=True)
        for target, source in pairs:
            mine, theirs = local(target), local(source)  # parts of both lie alike
            wide = torch.promote_types(mine.dtype, torch.float32)
            mine.copy_(torch.lerp(mine.to(wide), theirs.to(wide), share))

    def moving_reference(self) -> dict[str, torch.nn.Parameter]:
        """The reference's parameters where they move, which a checkpoint then has to keep."""
        if self.reference is None or not self.run.reference.moves:
            return {}
        return dict(self.reference.named_parameters())

    def microbatches(self, rollouts: Rollouts, rows: Tensor) -> Iterator[tuple[Tensor, int]]:
        """(rows, completion width) within the token budget: groups together where their prompt is
        run once for them, else rows of like length."""
        if self.policy.decoder is not None:
            yield from self._packed(rollouts, rows)
        else:
            yield from self._padded(rollouts, rows)

    def _packed(self, rollouts: Rollouts, rows: Tensor) -> Iterator[tuple[Tensor, int]]:
        budget = self.budget
        lengths, prompts = rollouts.lengths.tolist(), rollouts.prompt_lengths.tolist()
        chosen: list[int] = []
        size = 0
        for row in rows.tolist():
            known = chosen and chosen[-1] // rollouts.group_size == row // rollouts.group_size
            own = max(0, lengths[row] - 1)
            if chosen and size + own + (0 if known else prompts[row]) > budget:
                yield torch.tensor(chosen), max(1, *(lengths[r] for r in chosen))
                chosen, size, known = [], 0, False
            size += own + (0 if known else prompts[row])
            chosen.append(row)
        if chosen:
            yield torch.tensor(chosen), max(1, *(lengths[r] for r in chosen))

    def _padded(self, rollouts: Rollouts, rows: Tensor) -> Iterator[tuple[Tensor, int]]:
        budget = self.budget
        lengths = rollouts.lengths.cpu()
        total = lengths + rollouts.prompt_lengths.cpu()
        chosen: list[int] = []
        longest = width = 0
        for row in sorted(rows.tolist(), key=lambda r: (int(total[r]), r)):
            size = int(total[row])
            if chosen and (len(chosen) + 1) * max(longest, size) > budget:
                yield torch.tensor(chosen), max(1, width)
                chosen, longest, width = [], 0, 0
            chosen.append(row)
            longest, width = max(longest, size), max(width, int(lengths[row]))
        if chosen:
            yield torch.tensor(chosen), max(1, width)

    def halve(self, rollouts: Rollouts) -> bool:
        """Halves the budget; False where micro-batches are single rows already."""
        total = rollouts.lengths + rollouts.prompt_lengths
        if self.budget < int(total.min()):
            return False
        self.budget = max(1, min(self.budget, int(total.sum())) // 2)
        return True

    def halving(
        self,
        attempt: Callable[[], Found],
        rollouts: Rollouts,
        place: str,
        *,
        learns: bool = False,
    ) -> Found:
        """What passes over micro-batches give. Out of memory, they begin again with micro-batches
        of half the size: the same numbers.

        Args:
            attempt: all of them from their start, without a transfer between ranks that has to
                happen once.
            place: what the passes are, for the messages.
            learns: whether there are backward passes among them.

        Raises:
            TrainingFailed: nothing is left to halve, or ranks share out their weights.
        """
        while True:
            try:
                return attempt()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.policy.sharded:  # the others wait in the middle of a pass
                    raise TrainingFailed(
                        f"out of memory in {place}, which ranks that share out their weights "
                        "cannot begin again; a smaller hardware.tokens_per_microbatch needs less"
                    ) from error
                if not self.halve(rollouts):
                    raise TrainingFailed(
                        f"out of memory in {place} although its micro-batches are single rows; "
                        f"{self._advice(learns)} needs less"
                    ) from error
                problem = problem_of(error)
            # behind the handler: the traceback holds on to the tensors of the failed micro-batch
            warnings.warn(
                f"out of memory in {place} ({problem}); it goes on with micro-batches of "
                f"{self.budget} tokens",
                stacklevel=2,
            )

    def _advice(self, learns: bool) -> str:
        """What needs less memory where micro-batches are single rows. Checkpointing is for backward
        passes of our own kernels."""
        ours = self.policy.decoder is not None and not self.run.kl.needs_logits
        ours = ours and self.run.sampler.evaluation().scales
        if learns and ours and not self.policy.checkpointing:
            return "hardware.gradient_checkpointing=true or a smaller sampler.max_new_tokens"
        return "a smaller sampler.max_new_tokens"

    def part(self, rollouts: Rollouts, rows: Tensor, width: int) -> dict[str, Tensor]:
        """The tensors of some rows, completions cut to `width`."""
        rows = rows.to(rollouts.mask.device)
        prompt_lengths = rollouts.prompt_lengths[rows]
        part = {
            "prompt_ids": rollouts.prompt_ids[rows][:, : int(prompt_lengths.max())],
            "prompt_lengths": prompt_lengths,
            "groups": rows // rollouts.group_size,
            "truncated": rollouts.truncated[rows].unsqueeze(1),
        }
        for name in PER_TOKEN:
            part[name] = getattr(rollouts, name)[rows, :width]
        for name in WHERE_KNOWN:
            if getattr(rollouts, name) is not None:
                part[name] = getattr(rollouts, name)[rows, :width]
        if rollouts.rewards is not None:
            part["rewards"] = rollouts.rewards.reshape(-1, 1)[rows]
        if rollouts.advantages is not None:
            part["advantages"] = cut(rollouts.advantage_rows()[rows], width)
        return part

    def logps(
        self, part: dict[str, Tensor], model: Any = None, *, collision: bool = False
    ) -> TokenLogps:
        """Of a part's completions, under the trained policy or another model: the reference, whose
        support is always whole."""
        sampler = self.run.sampler
        return self.policy.token_logps(
            part["prompt_ids"],
            part["prompt_lengths"],
            part["completion_ids"],
            part["mask"],
            model=model,
            keep_logits=self.run.kl.needs_logits,
            collision=collision,
            groups=part["groups"],
            evaluation=sampler.evaluation(whole=model is not None),
        )

    def reference_logps(self, part: dict[str, Tensor], old_logps: Tensor) -> TokenLogps:
        """Of a part's completions under the reference; computed once a batch where possible."""
        if not self.run.reference.needs_model:
            return TokenLogps(old_logps.detach(), old_logps.detach())
        if "ref_logps" in part and not self.run.kl.needs_logits:
            return TokenLogps(part["ref_logps"], part["ref_logps"])
        if self.reference is not None:
            return self.logps(part, self.reference)
        with self.policy.base_weights() as model:
            return self.logps(part, model)

    def keep_pace(
        self, passes: int, rollouts: Rollouts, *, reference: bool = True, learns: bool = False
    ) -> None:
        """Passes over one row that count for nothing: weights in parts are gathered by all ranks
        together, so each runs as many.

        Args:
            reference: whether each has asked the reference too, where there is one.
            learns: whether each had a backward pass.
        """
        row = (rollouts.lengths > 0).long().argmax().cpu().reshape(1)
        for _ in range(passes):
            part = self.part(rollouts, row, max(1, int(rollouts.lengths[row])))
            with torch.set_grad_enabled(learns):
                now = self.logps(part)
            if reference and self.uses_reference:
                with torch.no_grad():
                    self.reference_logps(part, now.logps.detach())
            if learns:
                torch.autograd.backward([0.0 * now.logps.sum()])


def learning(rollouts: Rollouts, rows: Tensor, *, always: bool) -> Tensor:
    """[n] rows that can have a gradient. The others, of groups whose answers are all right or all
    wrong for most estimators, run forward alone, for what is measured.

    Args:
        always: whether a row has one without an advantage, too.
    """
    if always:
        return torch.ones(len(rows), dtype=torch.bool)
    index = rows.to(rollouts.mask.device)
    counts = rollouts.mask[index] & (rollouts.advantage_rows()[index] != 0)
    return counts.any(dim=1).cpu()  # NaN is not 0, and is to be seen


def unless_known(now: Tensor, known: Tensor | None, fresh: Tensor) -> Tensor:
    """`now` in fresh rows [N, 1]; in the others what is known from their own time."""
    return now if known is None else torch.where(fresh, now, known.to(now))


def cut(rows: Tensor, width: int) -> Tensor:
    """[n, 1] as it is, [n, T] to the first `width` columns."""
    return rows if rows.shape[1] == 1 else rows[:, :width]
