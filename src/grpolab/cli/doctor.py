"""`grpolab doctor`: what this machine has, what is missing, and what a kill left behind."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from grpolab.cli.inspect import key_values

EXTRAS = {
    "peft": "lora", "reasoning_gym": "reasoning-gym", "gguf": "fetch",
    "hydra_plugins.hydra_joblib_launcher": "joblib", "ray": "ray", "submitit": "slurm",
    "optuna": "search",
}  # fmt: skip
KEYS = {"output_dir": "where the runs lie (outputs)"}


def doctor(arguments: Sequence[str]) -> int:
    """Prints the report, and puts right what a kill left behind."""
    if any(a in ("-h", "--help") for a in arguments):
        print("usage: grpolab doctor [output_dir=outputs]")
        return 0
    given = key_values(arguments, KEYS)
    lines = [*device_lines(), *package_lines(), *store_lines(given.get("output_dir", "outputs"))]
    print("\n".join(lines))
    return 0


def device_lines() -> list[str]:
    """Devices, dtypes, memory."""
    import torch

    from grpolab.policy.policy import pick_device, pick_dtype

    device = pick_device("auto")
    dtype = str(pick_dtype("auto", device)).removeprefix("torch.")
    lines = [
        f"python      {platform.python_version()} on {platform.platform()}",
        f"device      {device.type} (hardware=auto), {dtype}",
        f"cpu         {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"capability {torch.backends.cpu.get_cpu_capability()}",
        f"memory      {_free_memory()}",
    ]
    if device.type == "cpu":
        lines.append(dtype_line())
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        lines.append(
            f"gpu         {torch.cuda.get_device_name(0)}, {free / 2**30:.1f} of "
            f"{total / 2**30:.1f} GiB free, bfloat16 "
            f"{'yes' if torch.cuda.is_bf16_supported() else 'no'}"
        )
    else:
        lines.append("gpu         none that torch can use")
    return lines


def dtype_line() -> str:
    """Matmul rates of both dtypes; which one runs stays a setting, since it changes results."""
    rates = {name: matmul_rate(name) for name in ("float32", "bfloat16")}
    text = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    advice = ""
    if rates["bfloat16"] > 1.3 * rates["float32"]:
        advice = "; hardware.dtype=bfloat16 would be faster (weights stay float32)"
    return f"matmul      {text} GFLOP/s{advice}"


def matmul_rate(dtype: str) -> float:
    """GFLOP/s of 512 tokens through a 576 × 1536 weight, the best of some calls."""
    import torch

    from grpolab.policy.kernels import linear
    from grpolab.policy.policy import DTYPES

    x, weight = (torch.randn(n, 576).to(DTYPES[dtype]) for n in (512, 1536))
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        linear(x, weight)
        seconds.append(time.perf_counter() - began)
    return float(2 * x.shape[0] * weight.numel() / min(seconds) / 1e9)


def _free_memory() -> str:
    try:
        pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return f"{pages * size / 2**30:.1f} GiB free"
    except (ValueError, OSError):
        return "free memory unknown on this system"


def package_lines() -> list[str]:
    """Versions, and the extras that are missing."""
    from grpolab.tracking.provenance import PACKAGES, _version

    lines = [f"{name:<13}{_version(name) or 'missing'}" for name in PACKAGES]
    for module, extra in EXTRAS.items():
        if not _importable(module):
            lines.append(f"missing     {module}: pip install 'grpolab[{extra}]'")
    return lines


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def store_lines(output_dir: str) -> list[str]:
    """Disk, runs, and runs that a kill left behind; those are marked as what they are."""
    folder = Path(output_dir)
    there = folder if folder.exists() else Path(".")
    free = shutil.disk_usage(there).free / 2**30
    lines = [f"disk        {free:.1f} GiB free under {there.absolute()}"]
    if not folder.exists():
        return lines
    states = reconcile(folder)
    counted = ", ".join(f"{n} {state}" for state, n in sorted(states.items())) or "none"
    return [*lines, f"runs        {counted}"]


def reconcile(output_dir: Path) -> dict[str, int]:
    """Counts runs by state. A run whose process is gone becomes pending (the same command resumes
    it), and its MLflow run KILLED instead of RUNNING."""
    from grpolab.tracking.folder import RunFolder, lease_is_live

    counts: dict[str, int] = {}
    for status_file in sorted(output_dir.glob("*/*/STATUS")):
        folder = RunFolder(status_file.parent)
        status = folder.status()
        if status["state"] == "running" and not lease_is_live(status):
            folder.set_status("pending", "its process is gone; the same command resumes it")
            _mark_killed(folder.read_json("mlflow.json"))
            status = folder.status()
        counts[status["state"]] = counts.get(status["state"], 0) + 1
    return counts


def _mark_killed(known: dict[str, str] | None) -> None:
    if known is None:
        return
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client = MlflowClient(tracking_uri=known["uri"])
        if client.get_run(known["run_id"]).info.status == "RUNNING":
            client.set_terminated(known["run_id"], status="KILLED")
    except (MlflowException, SQLAlchemyError) as error:
        print(f"mlflow      cannot mark {known['run_id']} in {known['uri']}: {error}")
