"""Equations: LaTeX as MathML, which browsers draw by themselves, without a script or a font from elsewhere."""

import html
import re

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def with_mathml(page: str) -> str:
    """A page of HTML with its LaTeX, as the Markdown extension arithmatex marks it, drawn."""
    page = DISPLAY.sub(lambda found: f'<div class="equation">{_mathml(found[1], "block")}</div>', page)
    return INLINE.sub(lambda found: _mathml(found[1], "inline"), page)


def _mathml(latex: str, display: str) -> str:
    return convert(html.unescape(latex).strip(), display=display)
