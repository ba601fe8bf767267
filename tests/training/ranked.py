"""Runs cases on however many ranks started it, in float64, and writes what each rank ends with.

    torchrun --nproc-per-node 2 ranked.py cases.json folder

cases.json: {name: {"raw": the resolved configuration, "folder": where it runs, "stop": step at
which a rank is asked to stop | null, "idle": true where the rollouts are made up, "narrow": true
where float64 is not, "export": whether the model is written}}. A case whose folder holds a
checkpoint goes on.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from grpolab.config import bind_run
from grpolab.policy.policy import Encoder, Policy
from grpolab.policy.sharding import gathered, local
from grpolab.rewards.base import RewardInputs, Scores
from grpolab.tracking.folder import RunFolder
from grpolab.training.loop import Interrupted, Trainer
from grpolab.training.ranks import Ranks, joined
from grpolab.training.update import Updater

sys.path.insert(0, str(Path(__file__).parents[1] / "policy"))
if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

CLOCKED = ("time/", "speed/", "memory/")


def some(inputs: RewardInputs) -> Scores:
    """One prompt in four does not tell its completions apart; the others do, by length and
    letters."""
    together = zip(inputs.examples, inputs.completions, inputs.lengths, strict=True)
    scores = [
        0.1 * length + sum(map(ord, text)) % 7 / 7
        if (example.meta["a"] + example.meta["b"]) % 4
        else 0.0
        for example, text, length in together
    ]
    return Scores(scores, {"some": scores})


def main(cases: dict[str, dict[str, Any]], folder: Path) -> None:
    """Every case, one after the other."""
    with joined("cpu") as ranks:
        for name, case in cases.items():
            found = idle(case, ranks) if case.get("idle") else trained(case, ranks)
            updater, metrics = found
            out = folder / f"{name}.{ranks.rank}"
            save_file(parameters_of(updater), f"{out}.safetensors")
            content = {"metrics": metrics, "kept": kept_here(updater)}
            Path(f"{out}.json").write_text(json.dumps(content))


def trained(case: dict[str, Any], ranks: Ranks) -> tuple[Updater, list[Any]]:
    """The updater and metrics of a whole run, or of one that was asked to stop."""
    run = replace(bind_run(case["raw"]), reward=some)
    folder = Path(case["folder"])
    folder.mkdir(exist_ok=True, parents=True)
    job = Trainer(run, Encoder(run.model), run.task.load(), RunFolder(folder), ranks)
    if not case.get("narrow"):
        double(job.updater)
    logged: list[Any] = []

    def log(step: int, metrics: dict[str, float]) -> None:
        kept = {k: v for k, v in metrics.items() if not k.startswith(CLOCKED)}
        logged.append([step, kept])
        last = ranks.rank == ranks.size - 1  # a signal to one rank is meant for all of them
        if last and step == case.get("stop"):
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        job.fit(log)
    except Interrupted:
        logged.append(["interrupted", {}])
    if case.get("export"):
        job.export()
    return job.updater, logged


def idle(case: dict[str, Any], ranks: Ranks) -> tuple[Updater, list[Any]]:
    """Two updates on made-up rollouts of which one group alone has advantages, so that other ranks
    have nothing to learn from; one rank runs out of memory, and goes on."""
    run = bind_run(case["raw"])
    shares = run.hardware.shard != "none" and not ranks.alone
    policy = Policy(Encoder(run.model), run.hardware, peers=ranks if shares else None)
    updater = Updater(run, policy, ranks=ranks)
    double(updater)
    if ranks.rank == 0 and not shares:
        stumble(updater)
    metrics = []
    for step in range(2):
        rollouts = lab.made_up_rollouts(
            [3, 9, 1, 5], [4, 0, 12, 1, 7, 2, 5, 12], group_size=2, seed=step
        )
        assert rollouts.advantages is not None
        rollouts.advantages[:3] = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metrics.append([step, updater.update(rollouts, step, 0.1)])
    return updater, metrics


def stumble(updater: Updater) -> None:
    """The next forward pass finds no memory."""
    forward = updater.forward.logps

    def none_left(*arguments: Any, **settings: Any) -> Any:
        updater.forward.logps = forward  # type: ignore[method-assign]
        raise torch.OutOfMemoryError("made up")

    updater.forward.logps = none_left  # type: ignore[method-assign]


def double(updater: Updater) -> None:
    """Policy and reference in float64."""
    lab.double(updater.policy)
    if updater.forward.reference is not None:
        updater.forward.reference.double()
        lab.wide_norms(updater.forward.reference)


def kept_here(updater: Updater) -> int:
    """Numbers of weights and optimizer state in this rank's memory."""
    state = [v for kept in updater.optimizer.state.values() for v in kept.values() if v.dim()]
    return sum(local(tensor).numel() for tensor in (*updater.parameters.values(), *state))


def parameters_of(updater: Updater) -> dict[str, torch.Tensor]:
    return {n: p.contiguous().clone() for n, p in gathered(updater.parameters).items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
