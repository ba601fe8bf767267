"""`grpolab probe`: what each variant does to the gradient, on the same rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grpolab.component import ConfigError, nearest

OWN_KEYS = {
    "run": "job_id of a run: its configuration, weights and next step",
    "checkpoint": "a run's folder, its checkpoint/ or model/, or any saved model",
    "variants": "arms: [clip=cispo,[kl=k3,kl.beta=0.01],'advantage=rloo clip=none']",
    "parts": "of [signal,shares,tokens], what is wanted beside norms and cosines (all)",
    "group_sizes": "smaller groups whose signal and noise are measured, too, with errors: [2,4]",
    "staleness": "further updates of the first arm after which to look again: [0,1,4,16]",
    "stale_by": "those updates: batch (on this batch) or fresh (training steps on fresh prompts)",
    "fresh": "batches of fresh completions that the true gradient then is estimated from (4)",
    "out": "folder of cosine.csv, gradients.csv, …, figures/ and probe.html (output_dir/probe)",
}
USAGE = """usage: grpolab probe [run=… | checkpoint=… | model=…] 'variants=[…]' [key=value …]

Draws one batch of rollouts, as the run's next step would, and computes every arm's loss and
gradient on it, as the arm's first update would. Several values of a key (clip=ppo,cispo) make arms,
too. Nothing is trained.

{keys}

exit code: 0, or 2 for a configuration that is refused"""


def probe(arguments: Sequence[str]) -> int:
    """Probes, prints a table, and writes the frames."""
    if any(word.startswith("lab=") for word in arguments):  # a gradient known exactly
        from grpolab.cli.lab import lab

        return lab(arguments)
    if not arguments or any(a in ("-h", "--help") for a in arguments):
        print(USAGE.format(keys="\n".join(f"  {k:<12}{v}" for k, v in OWN_KEYS.items())))
        return 0
    from grpolab.probe.arms import parse_variants
    from grpolab.probe.request import PARTS, Request
    from grpolab.probe.staleness import parse_staleness, whole_numbers
    from grpolab.results.family import names_of
    from grpolab.sweep.compose import parse_command
    from grpolab.sweep.preflight import check_writable

    words, own = split(arguments)
    command = parse_command(words)
    if command.rest:
        raise ConfigError(f"{command.rest[0]}: unknown flag; allowed: --config-dir, --help.")
    asked = Request(
        command,
        parse_variants(own["variants"]) if "variants" in own else [],
        own.get("run"),
        own.get("checkpoint"),
        names_of(own["parts"]) if "parts" in own else PARTS,
        tuple(whole_numbers(own.get("group_sizes", ""), "group_sizes")),
        parse_staleness(own),
    ).resolved()  # refused without loading torch
    base = asked.base
    if "out" in own:
        check_writable(own["out"], "out")
    from grpolab.probe.session import measure, write

    found = measure(asked)
    folder = Path(own.get("out", Path(base.output_dir) / "probe"))
    write(found, folder)
    if base.tracking.mlflow:
        from grpolab.probe.log import to_mlflow

        to_mlflow(found, base, folder)
    columns = ["arm", "norm", "loss", "clip_share", "snr", "cosine_to_first", "cosine_error"]
    print(found.gradients[columns].to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    print(f"{found.passes} over the batch. Written to {folder}.")
    return 0


def split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Hydra's words, and the command's own keys."""
    words: list[str] = []
    own: dict[str, str] = {}
    for word in arguments:
        key, sign, value = word.partition("=")
        if key in OWN_KEYS and sign:
            if not value:
                raise ConfigError(f"{key}: empty; allowed: {OWN_KEYS[key]}.")
            own[key] = value
        elif sign and "." not in key and "/" not in key and nearest(key, OWN_KEYS) and key in (
            "variant", "runs", "checkpoints", "outs", "part", "group_size",
        ):  # fmt: skip
            raise ConfigError(f"{key}: unknown key (given {value}){nearest(key, OWN_KEYS)}")
        else:
            words.append(word)
    return words, own
