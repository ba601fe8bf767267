"""The figures of a probe: who points where, how far, on which tokens, and how surely."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy.cluster.hierarchy import dendrogram, leaves_list, linkage
from scipy.spatial.distance import squareform

from grpolab.probe.records import Probe
from grpolab.results import style

ROW = 0.13  # inches of one arm


def write_figures(found: Probe, folder: Path) -> list[str]:
    """Writes what there is to draw; the figures' names."""
    made = []
    with matplotlib.rc_context(style.PAPER):
        drawn = {
            "cosine": cosine_map(found.cosine),
            "norms": norms(found.gradients),
            "parts": parts(found.parts),
            "scaling": scaling(found.scaling),
            "staleness": staleness(found.staleness),
        }
    for name, figure in drawn.items():
        if figure is not None:
            style.save(figure, folder, name, CAPTIONS[name])
            made.append(name)
    return made


CAPTIONS = {
    "cosine": "Cosine between the arms' gradients on the same rollouts; arms in the order of an "
    "average-linkage clustering of 1 - cosine, whose tree stands on the left. Arms whose gradient "
    "is 0 are left out.",
    "norms": "Left: norm of each arm's gradient, before any clipping by norm. Right: cosine to the "
    "first arm with its jackknife standard error over groups: what overlaps 1 is not told from it "
    "by this batch.",
    "parts": "Share of each arm's squared gradient norm by difficulty of the prompt (share of "
    "rewards above the batch's mean), length of the completion, sign of the advantage and entropy "
    "of the token: inner product of the part's gradient with the whole, over the whole's square. "
    "The shares of each kind sum to 1; a part below 0 works against the whole.",
    "scaling": "Expected cosine between the gradients of two independent batches of P prompts, "
    "from the unbiased signal and noise of this batch's groups: S/(S + N/P), S and N per group.",
    "staleness": "After k further updates of the first arm on the same rollouts: cosine to the "
    "gradient with whole-sequence importance weights and no clip, which is unbiased; clip share; "
    "standard deviation of the ratio; effective sample size of those weights.",
}


def order_of(cosine: pd.DataFrame) -> tuple[list[str], np.ndarray | None]:
    """(arms with a gradient, in the order of a clustering; its linkage)."""
    known = [a for a in cosine.index if np.isfinite(cosine.loc[a, a])]
    if len(known) < 3:
        return known, None
    values = cosine.loc[known, known].to_numpy()
    away = np.clip(1 - (values + values.T) / 2, 0, None)
    np.fill_diagonal(away, 0)
    tree = linkage(squareform(away, checks=False), "average", optimal_ordering=True)
    return [known[i] for i in leaves_list(tree)], tree


def cosine_map(cosine: pd.DataFrame) -> Figure | None:
    """Heat map and dendrogram."""
    arms, tree = order_of(cosine)
    if not arms:
        return None
    size = max(2.2, ROW * len(arms) + 2.0)
    figure = style.new_figure(size + 1.6, size)
    left, axes = figure.subplots(1, 2, width_ratios=[1, 5])
    if tree is not None:
        dendrogram(tree, orientation="left", ax=left, no_labels=True, color_threshold=0,
                   above_threshold_color="0.4")  # fmt: skip
        left.invert_yaxis()
    left.set_axis_off()
    values = cosine.loc[arms, arms].to_numpy()
    lowest = float(values.min())
    signed = lowest < 0
    bottom = -1.0 if signed else min(0.9, np.floor(lowest * 10) / 10)
    image = axes.imshow(
        values, cmap="RdBu_r" if signed else "viridis", vmin=bottom, vmax=1, aspect="auto"
    )
    labels = [style.readable(a) for a in arms]
    axes.set_xticks(range(len(arms)), labels, rotation=90, fontsize=5)
    axes.set_yticks(range(len(arms)), labels, fontsize=5)
    axes.yaxis.tick_right()
    axes.grid(visible=False)
    if len(arms) <= 14:
        for i, j in np.ndindex(*values.shape):
            white = abs(values[i, j]) > 0.6
            axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=4.5,
                      color="white" if white else "black")  # fmt: skip
    figure.colorbar(image, ax=axes, location="top", label="cosine", shrink=0.5, aspect=30)
    return figure


def norms(gradients: pd.DataFrame) -> Figure | None:
    """Norms, and cosines to the first arm with their errors."""
    figure = style.new_figure(style.DOUBLE_COLUMN, max(1.6, ROW * len(gradients) + 0.7))
    left, right = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(gradients))
    left.plot(gradients["norm"].where(gradients["norm"] > 0), y, "o", ms=3, color="black")
    left.set_xscale("log")
    left.set_xlabel("gradient norm")
    left.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    left.xaxis.set_major_formatter(FuncFormatter(lambda norm, _: f"{norm:g}"))
    left.xaxis.set_minor_formatter(NullFormatter())
    left.margins(y=0.5 / max(1, len(gradients)))
    left.set_yticks(y, [style.readable(a) for a in gradients["arm"]], fontsize=5)
    left.invert_yaxis()
    right.errorbar(gradients["cosine_to_first"], y, xerr=gradients["cosine_error"].fillna(0),
                   fmt="o", ms=3, lw=0.8, color=style.COLOURS[0])  # fmt: skip
    right.axvline(1, color="0.5", lw=0.7)
    right.set_xlabel("cosine to the first arm ± standard error")
    return figure


KINDS = ("difficulty", "length", "advantage", "entropy")


def parts(frame: pd.DataFrame) -> Figure | None:
    """Shares of the squared norm by each kind of part."""
    if frame.empty:
        return None
    arms = list(dict.fromkeys(frame["arm"]))
    figure = style.new_figure(style.DOUBLE_COLUMN, max(1.6, ROW * len(arms) + 0.7))
    panels = figure.subplots(1, len(KINDS), sharey=True)
    for axes, kind in zip(panels, KINDS, strict=True):
        table = frame[frame["kind"] == kind].pivot_table(
            index="arm", columns="part", values="share", sort=False
        )
        table = table.reindex(arms)
        for i, part in enumerate(table.columns):
            axes.plot(table[part], range(len(arms)), style.MARKERS[i], ms=3,
                      color=style.COLOURS[i], label=str(part))  # fmt: skip
        axes.axvline(0, color="0.5", lw=0.6)
        axes.set_xlabel(f"share by {kind}")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=5.5,
                    handletextpad=0.1, columnspacing=0.6)  # fmt: skip
    panels[0].set_yticks(range(len(arms)), [style.readable(a) for a in arms], fontsize=5)
    panels[0].invert_yaxis()
    return figure


def scaling(frame: pd.DataFrame) -> Figure | None:
    """The expected cosine between independent batches against prompts."""
    frame = frame.dropna()
    if frame.empty:
        return None
    figure = style.new_figure(style.SINGLE_COLUMN, 2.4)
    axes = figure.subplots()
    for i, (arm, own) in enumerate(list(frame.groupby("arm", sort=False))[:6]):
        axes.plot(own["prompts"], own["repeat_cosine"], color=style.COLOURS[i], marker=".",
                  label=style.readable(str(arm)))  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xlabel("prompts in a batch")
    axes.set_ylabel("cosine between two batches")
    axes.legend(fontsize=5.5)
    return figure


def staleness(frame: pd.DataFrame) -> Figure | None:
    """Cosine to the unbiased gradient, clip share, ratio and sample size against updates."""
    if frame.empty:
        return None
    figure = style.new_figure(style.DOUBLE_COLUMN, 2.6)
    panels = figure.subplots(1, 4)
    columns = {
        "cosine_to_unbiased": "cosine to the unbiased one", "clip_share": "clip share",
        "ratio_std": "std of the ratio", "sequence_ess": "sample size, share",
    }  # fmt: skip
    for axes, (column, label) in zip(panels, columns.items(), strict=True):
        for i, (arm, own) in enumerate(frame.groupby("arm", sort=False)):
            colour = style.COLOURS[i % len(style.COLOURS)]
            axes.plot(own["updates"], own[column], color=colour,
                      ls=style.LINES[i // len(style.COLOURS) % len(style.LINES)],
                      marker=".", lw=0.9, label=style.readable(str(arm)))  # fmt: skip
        axes.set_xlabel("further updates")
        axes.set_ylabel(label)
    handles, labels = panels[0].get_legend_handles_labels()
    if len(labels) <= 12:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=5.5)
    return figure
