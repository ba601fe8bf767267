"""One self-contained page: tables, figures, and what each arm does to the tokens of some texts."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup

from grpolab.probe.records import Probe
from grpolab.probe.token_map import alike
from grpolab.results.visible import visible

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Probe</title><style>
body { font: 14px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; font-size: 12px } td, th { padding: 1px 8px; text-align: right }
td:first-child, th:first-child { text-align: left } img { max-width: 100% }
.tokens { font-family: ui-monospace, monospace; white-space: pre-wrap; margin: 2px 0 }
.tokens span { border-radius: 2px; padding: 0 1px } .arm { color: #555; font-size: 12px }
</style></head><body>
<h1>What each variant does to the gradient</h1>
<p>{{ arms }} arms on the same rollouts (step {{ step }}), by {{ passes }} over
the batch. snr and repeat_cosine say what the batch can tell: two independent batches of
this size would have gradients with a cosine of about repeat_cosine under the very same arm.
cosine_error is
the standard error of cosine_to_first over groups.</p>
<h2>Gradients</h2>
<table><tr>{% for c in columns %}<th>{{ c }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% for figure in figures %}<h2>{{ figure.name }}</h2>
<img alt="{{ figure.name }}" src="data:image/png;base64,{{ figure.data }}">
<p>{{ figure.caption }}</p>
{% endfor %}
<h2>Tokens</h2>
<p>What each arm reinforces (blue) and suppresses (red), token by token: −∂loss/∂log p, as a share
of the arm's largest here. Arms that do the same, up to a factor, share a line.</p>
{% for text in texts %}<h3>Completion {{ text.row }}</h3>
{% for line in text.lines %}<div class="arm">{{ line.arm }}</div><div class="tokens">
{%- for token in line.tokens -%}
<span style="background: {{ token.colour }}" title="{{ token.weight }}">{{ token.text }}</span>
{%- endfor %}</div>{% endfor %}{% endfor %}
</body></html>
"""
TEXT_ARMS = 12
"""Patterns that are shown; arms that do the same to all tokens, up to a factor, are one."""


def write_page(found: Probe, folder: Path, figures: list[str]) -> Path:
    """probe.html beside the frames; whatever a model wrote is escaped, control characters too."""
    environment = Environment(
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),
    )
    columns = [
        "arm", "norm", "loss", "clip_share", "contributing_tokens", "contributing_groups", "snr",
        "repeat_cosine", "half_cosine", "cosine_to_first", "cosine_error",
    ]  # fmt: skip
    shown = found.gradients[columns]
    rows = [
        [cell if isinstance(cell, str) else f"{cell:.4g}" for cell in row]
        for row in shown.itertuples(index=False)
    ]
    text = environment.from_string(PAGE).render(
        arms=len(rows),
        step=found.step,
        passes=found.passes,
        columns=columns,
        rows=rows,
        figures=[_figure(folder / "figures", name) for name in figures],
        texts=_texts(found.tokens),
    )
    path = folder / "probe.html"
    path.write_text(text, encoding="utf-8")
    return path


def _figure(folder: Path, name: str) -> dict[str, Any]:
    data = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
    caption = (folder / f"{name}.caption.txt").read_text(encoding="utf-8")
    return {"name": name, "data": Markup(data), "caption": caption}


def _texts(tokens: pd.DataFrame) -> list[dict[str, Any]]:
    if tokens.empty:
        return []
    patterns = alike(tokens)[:TEXT_ARMS]
    found = []
    for row in sorted(tokens["row"].unique()):
        lines = [
            {
                "arm": " · ".join(arms),
                "tokens": [
                    {
                        "text": t.text,
                        "weight": f"{t.weight:.3g}",
                        "colour": colour(float(str(t.relative)), 1.0),
                    }
                    for t in own[own["row"] == row].itertuples()
                ],
            }
            for arms, own in patterns
        ]
        found.append({"row": row, "lines": lines})
    return found


def colour(weight: float, largest: float) -> str:
    """Blue above 0, red below, fainter towards it."""
    strength = 0.0 if not largest else 0.75 * min(1.0, abs(weight) / largest)
    red, green, blue = (0, 114, 178) if weight > 0 else (213, 94, 0)
    return f"rgba({red}, {green}, {blue}, {strength:.2f})"
