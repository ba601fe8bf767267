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

from grpolab.probe import difficulty_figure, size_figure
from grpolab.probe.difficulty_figure import difficulty
from grpolab.probe.records import Probe
from grpolab.probe.size_figure import sizes
from grpolab.probe.token_map import CAPTION, SHARES_CAPTION, token_map
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
            "difficulty": difficulty(found.difficulty),
            "scaling": scaling(found.scaling),
            "sizes": sizes(found.sizes),
            "staleness": staleness(found.staleness),
            "ratios": ratios(found.ratios),
            "tokens": token_map(found.tokens),
            "token_shares": token_map(found.tokens, "share"),
        }
    for name, figure in drawn.items():
        if figure is not None:
            figure.set_dpi(style.PAPER["savefig.dpi"])  # small text is wider at fewer dots
            style.save(figure, folder, name, CAPTIONS[name])
            made.append(name)
    return made


CAPTIONS = {
    "cosine": "Cosine between the arms' gradients on the same rollouts; arms in the order of an "
    "average-linkage clustering of 1 - cosine, whose tree stands on the left. Arms whose gradient "
    "is 0 are left out.",
    "norms": "Left: norm of each arm's gradient, before any clipping by norm. Right: cosine to the "
    "first arm with its jackknife standard error over groups: what overlaps 1 is not told from it "
    "by this batch; without a bar the error is unknown.",
    "parts": "Share of each arm's squared gradient norm by difficulty of the prompt (share of "
    "rewards above the batch's mean), length of the completion, sign of the advantage and entropy "
    "of the token: inner product of the part's gradient with the whole, over the whole's square. "
    "The shares of each kind sum to 1; a part below 0 works against the whole.",
    "difficulty": difficulty_figure.CAPTION,
    "sizes": size_figure.CAPTION,
    "scaling": "Expected cosine between the gradients of two independent batches of P prompts, "
    "from the unbiased signal and noise of this batch's groups: S/(S + N/P), S and N per group.",
    "staleness": "After k further updates of the first arm (on this batch, or training steps on "
    "fresh ones, as asked). Top: cosine of each arm's gradient on this batch to the true gradient, "
    "the first arm's expectation over fresh completions of the same prompts, estimated without "
    "bias from several batches (grey line: what one fresh batch of this size has; bars: standard "
    "error over those batches); length along the "
    "true gradient over its length; cosine to the gradient with whole-sequence importance weights "
    "and no clip. Bottom: clip share; standard deviation of the ratio; effective sample size of "
    "those weights. Gaps: the fresh batches show no signal.",
    "tokens": CAPTION,
    "token_shares": SHARES_CAPTION,
    "ratios": "Distribution of the log-ratios between the policy after k further updates and the "
    "one that drew this batch, of tokens and of whole completions, in equal bins; the outermost "
    "take what lies beyond. Dotted: ratios of 0.8 and 1.2, the bounds of ppo by default.",
}


LONGEST = 48  # characters of a label, beyond which it leaves too little of the figure


def short(arm: str) -> str:
    """An arm's label, its end cut off where it is too long; the tables have it whole."""
    label = style.readable(arm)
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


ALIKE = 1e-9  # 1 - cosine that is rounding


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
    if tree is not None and tree[:, 2].max() > ALIKE:  # else a tree without a length
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
    labels = [short(a) for a in arms]
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
    left.set_yticks(y, [short(a) for a in gradients["arm"]], fontsize=5)
    left.invert_yaxis()
    right.errorbar(gradients["cosine_to_first"], y, xerr=gradients["cosine_error"],
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
    panels[0].set_yticks(range(len(arms)), [short(a) for a in arms], fontsize=5)
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
    """Cosines, length, clip share and sample size of each arm against updates."""
    if frame.empty:
        return None
    figure = style.new_figure(style.DOUBLE_COLUMN, 4.2)
    panels = figure.subplots(2, 3).flat
    for axes, (column, label) in zip(panels, STALE.items(), strict=True):
        known = frame.dropna(subset=column)
        for i, (arm, own) in enumerate(frame.groupby("arm", sort=False)):
            look = style.nth_style(i, style.readable(str(arm)))
            axes.plot(own["updates"], own[column], color=look.colour, ls=look.line,
                      marker=look.marker, ms=2.5, lw=0.9, label=look.label)  # fmt: skip
        if column == "cosine_to_true" and not known.empty:
            axes.errorbar(known["updates"], known[column], yerr=known["cosine_to_true_error"],
                          fmt="none", ecolor="0.6", elinewidth=0.6, zorder=0)  # fmt: skip
            first = frame.groupby("updates", as_index=False).first()
            axes.plot(first["updates"], first["fresh_cosine"], color="0.5", lw=1.6, zorder=0)
        axes.set_xlabel("further updates")
        axes.set_ylabel(label)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(labels) <= 12:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=5.5)
    return figure


STALE = {
    "cosine_to_true": "cosine to the true gradient", "length_along_true": "length along it, share",
    "cosine_to_unbiased": "cosine to the weighted one", "clip_share": "clip share",
    "ratio_std": "std of the ratio", "sequence_ess": "sample size, share",
}  # fmt: skip
BOUNDS = (0.8, 1.2)


def ratios(frame: pd.DataFrame) -> Figure | None:
    """Histograms of the tokens' and the completions' log-ratios after some updates."""
    frame = frame[frame["updates"] > 0] if not frame.empty else frame
    if frame.empty:
        return None
    figure = style.new_figure(style.DOUBLE_COLUMN, 2.5)
    for axes, level in zip(figure.subplots(1, 2), ("token", "sequence"), strict=True):
        own = frame[frame["level"] == level]
        for i, (updates, one) in enumerate(own.groupby("updates")):
            edges = [*one["low"], one["high"].iloc[-1]]
            look = style.nth_style(i, f"after {updates}")
            axes.stairs(one["share"], edges, color=look.colour, ls=look.line, lw=0.9,
                        label=look.label)  # fmt: skip
        for bound in BOUNDS:
            axes.axvline(np.log(bound), color="0.5", lw=0.7, ls=":")
        axes.set_yscale("log")
        axes.set_xlabel(f"log-ratio of a {'token' if level == 'token' else 'completion'}")
        axes.set_ylabel("share of a bin")
        axes.legend(fontsize=5.5)
    return figure
