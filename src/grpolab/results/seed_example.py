"""The worked example of experiment=seed_example: its printed values beside exact ones, and what
the run itself did."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grpolab.component import component
from grpolab.config import Run
from grpolab.tracking.folder import RunFolder, read_jsonl

ERRATA = (
    "F.kl_div(log_softmax(new), softmax(old)) over an axis of size 1 is identically 0: with one "
    "token the example trains without a KL, whatever β is (kl=seed_kl_div keeps this to be seen).",
    "It takes the old policy for the reference. They are the same only at the first update; GRPO's "
    "reference is the frozen start (reference=frozen).",
    '"0.4 → clipped to 0.8" does not bind for A > 0: min(0.4·A, 0.8·A) is the unclipped term, and '
    "its gradient passes. It binds for A < 0.",
    "Its old log-probs are those of the tempered, truncated distribution (T 0.7, top-k 10), its "
    "new ones of the plain policy, so its ratio is not 1 before any update. Here both are of the "
    "plain policy.",
    "Standard deviation 0.53 and advantage 0.94 are rounded twice: 0.5345 and 0.9354.",
)


def report(run: Run, folder: RunFolder) -> str:
    """The table, the errata, and the run's own numbers, as text."""
    lines = ["", "The worked example         quantity: the example prints → exact"]
    for label, printed, exact in table():
        lines.append(f"  {label:<58}{printed:>18} → {exact}")
    lines += ["", "Where the example errs"]
    lines += [f"  {i}. {text}" for i, text in enumerate(ERRATA, start=1)]
    return "\n".join([*lines, "", *own_numbers(run, folder)])


def own_numbers(run: Run, folder: RunFolder) -> list[str]:
    """What this run sampled and did."""
    samples = read_jsonl(folder.path / "samples.jsonl")
    metrics = folder.metrics()[-1][1]
    group = run.sampler.group_size
    rewards = torch.tensor([s["reward"] for s in samples], dtype=torch.float64).reshape(-1, group)
    advantages = run.advantage(rewards)
    lines = [f"This run ({run.model.name}, {samples[0]['prompt']!r})"]
    for g, row in enumerate(rewards.tolist()):
        texts = [s["completion"] for s in samples[g * group : (g + 1) * group]]
        values = ", ".join(f"{a:+.4f}" for a in advantages[g].tolist())
        lines.append(f"  group {g + 1}: {texts} rewards {row} advantages [{values}]")
    names = ("policy/ratio_mean", "policy/ratio_max", "clip/share", "loss/policy", "loss/kl",
             "optim/grad_norm", "kl/old_k3")  # fmt: skip
    shown = ", ".join(f"{n} {metrics[n]:.6g}" for n in names if n in metrics)
    lines.append(f"  {metrics['optim/updates']:.0f} updates: {shown}")
    if not bool((advantages != 0).any()):
        lines.append("  Both groups had equal rewards, so nothing was learnt; try another seed.")
    return lines


def table() -> list[tuple[str, str, str]]:
    """(quantity, as the example prints it, exact), all through the public components."""
    return [*_advantages(), *_surrogates(), *_script()]


def _show(values: Tensor, digits: int = 4) -> str:
    return " ".join(f"{v:.{digits}f}" for v in values.flatten().tolist())


def _f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _advantages() -> list[tuple[str, str, str]]:
    eight = _f64([[1.0, 1, 1, 1, 0, 0, 0, 0]])
    four = _f64([[1.0, 0, 0, 1], [0.0, 0, 1, 1]])

    def first(rewards: Tensor, **settings: Any) -> str:
        return f"±{float(component('advantage', 'group_zscore', **settings)(rewards)[0, 0]):.4f}"

    spreads = torch.stack([eight.std(), eight.std(correction=0)])
    return [
        ("G=8, 4 right: mean", "0.5", _show(eight.mean())),
        ("  standard deviation, ddof 1 / 0", "0.53", _show(spreads)),
        ("  advantage, ddof 1, eps 0", "±0.94", first(eight, eps=0.0)),
        ("  advantage, ddof 1, eps 1e-4", "", first(eight)),
        ("  advantage, ddof 0, eps 0", "", first(eight, ddof=0, eps=0.0)),
        ("G=4, [1,0,0,1] and [0,0,1,1]: standard deviation", "", _show(four.std(dim=1))),
        ("  advantage, eps 1e-8 / 1e-4", "±0.866", f"{first(four, eps=1e-8)} {first(four)}"),
    ]  # fmt: skip


def _surrogates() -> list[tuple[str, str, str]]:
    ratios = _f64([[0.9 / 0.5], [0.2 / 0.5], [0.7 / 0.5]])
    mask = torch.ones(3, 1, dtype=torch.bool)
    ppo = component("clip", "ppo")
    normalise = component("advantage", "group_zscore", eps=0.0)
    advantage = float(normalise(_f64([[1.0] * 4 + [0.0] * 4]))[0, 0])
    rows = [("ratios 0.9/0.5, 0.2/0.5, 0.7/0.5, clipped at 0.2", "1.2 0.8 1.2",
             _show(ratios.clamp(1 - ppo.low, 1 + ppo.high), 1))]  # fmt: skip
    for sign in (1, -1):
        logps = ratios.log().requires_grad_()
        surrogate = ppo(logps, torch.zeros_like(logps), _f64([[sign * advantage]] * 3), mask)
        surrogate.loss.sum().backward()
        assert logps.grad is not None
        passes = ", ".join("passes" if g != 0 else "0" for g in logps.grad.flatten().tolist())
        label = f"surrogate at A = {sign * advantage:+.4f} (its gradient)"
        rows.append((label, "", f"{_show(-surrogate.loss.detach())} ({passes})"))
    return rows


def _script() -> list[tuple[str, str, str]]:
    rewards = _f64([[1.0, 0, 0, 1], [0.0, 0, 1, 1]])
    advantages = component("advantage", "group_zscore")(rewards).reshape(-1, 1)
    right = rewards.reshape(-1, 1) > 0
    d = torch.where(right, 0.5, -0.5).double()
    mask = torch.ones(8, 1, dtype=torch.bool)
    policy = component("clip", "ppo")(d, torch.zeros_like(d), advantages, mask).loss
    # The script's own penalty is 0.01·|Δlogp|, which it calls a KL
    penalised = policy + 0.01 * d.abs()
    kl = component("kl", "seed_kl_div")(d, torch.zeros_like(d), mask)
    mean = component("aggregation", "token_mean")
    whole = [mean(x, mask, group_size=4, max_length=1) for x in (penalised, policy)]
    pair = (int(right.flatten().nonzero()[0]), int((~right).flatten().nonzero()[0]))
    return [
        ("script, new = old ± 0.5: ratios", "1.6487 0.6065", _show(_f64([0.5, -0.5]).exp())),
        ("  policy loss per token, right / wrong", "", _show(policy[list(pair)])),
        ("  with 0.01·|Δlogp|", "", _show(penalised[list(pair)])),
        ("  mean over 8, with / without it", "-0.1682 -0.1732", _show(torch.stack(whole))),
        ("  its F.kl_div over one token", "", _show(kl.sum())),
    ]
