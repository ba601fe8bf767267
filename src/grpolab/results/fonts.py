"""The font inside an SVG: text stays text, and looks the same where the font is not installed."""

from __future__ import annotations

import base64
import html
import io
import logging
import re
from functools import lru_cache
from pathlib import Path

import matplotlib

_TEXT = re.compile(r"<text[^>]*>(.*?)</text>", re.DOTALL)
_FAMILY = "DejaVu Sans"


def embed(svg: str) -> str:
    """The SVG with those glyphs of DejaVu Sans that its text needs, as an @font-face."""
    texts = [html.unescape(re.sub(r"<[^>]*>", "", text)) for text in _TEXT.findall(svg)]
    characters = "".join(sorted(set("".join(texts))))
    if not characters:
        return svg
    face = (
        f"@font-face{{font-family:'{_FAMILY}';"
        f"src:url(data:font/woff;base64,{_subset(characters)}) format('woff')}}"
    )
    start = svg.index("<defs>") + len("<defs>")
    return f'{svg[:start]}\n  <style type="text/css">{face}</style>{svg[start:]}'


@lru_cache(maxsize=64)
def _subset(characters: str) -> str:
    """The font cut to `characters`, as WOFF in base64; no date inside, so the same bytes."""
    from fontTools import subset, ttLib

    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it reports tables it drops
    font = ttLib.TTFont(
        Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", recalcTimestamp=False
    )
    options = subset.Options(layout_features=[], hinting=False, notdef_outline=True)
    cutter = subset.Subsetter(options)
    cutter.populate(text=characters)
    cutter.subset(font)
    font.flavor = "woff"
    file = io.BytesIO()
    font.save(file)
    return base64.b64encode(file.getvalue()).decode()
