"""The building blocks of reports: a self-contained HTML page with style, tables and figures; no script, no network.

It supports light and dark mode, desktop and phone. It knows nothing of attention.
"""

from __future__ import annotations

from collections.abc import Sequence

from promptlora.inspect.drawing import safe_text

_CSS = """\
:root{color-scheme:light dark;--ink:#1f2328;--soft:#59636e;--paper:#fff;--line:#d1d9e0;--band:#f3f6f9;--hot:#0b57d0;--gain:#0a7d48;--loss:#c4320a}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--paper:#0d1117;--line:#3d444d;--band:#161b22;--hot:#7cb0ff;--gain:#56d397;--loss:#ff9a70}}
*{box-sizing:border-box}body{margin:0 auto;max-width:70rem;padding:1rem;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25}h2{font-size:1.15rem;margin-top:2rem}.soft{color:var(--soft)}p{max-width:48rem}.note{margin:.3rem 0 .75rem}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:6px;margin:.75rem 0}
.figures{display:flex;flex-wrap:wrap;gap:.75rem;align-items:flex-start}.figures .wide{margin:0;max-width:100%}
.figure svg{max-width:100%;height:auto;min-width:var(--least)}
table{border-collapse:collapse;width:100%;overflow-wrap:normal;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;text-align:right;white-space:nowrap}th{white-space:normal;vertical-align:bottom}th:first-child,td:first-child,.text{text-align:left}
td.text{white-space:normal;overflow-wrap:anywhere;min-width:9rem}
thead th{border-bottom:1px solid var(--line)}tbody tr:nth-child(even){background:var(--band)}tr.here{outline:2px solid currentColor;outline-offset:-2px}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:0 .8rem;min-width:9rem}th .pair{font-weight:400}.two{color:var(--hot)}
.gain{color:var(--gain)}.loss{color:var(--loss)}.tokens{display:flex;flex-wrap:wrap;gap:2px;font:14px ui-monospace,Consolas,monospace}
.tokens span{padding:0 .3em;border:1px solid var(--line);border-radius:3px}.tokens b{padding:0 .3em;border:2px solid currentColor;border-radius:3px}
code,pre{font:14px ui-monospace,Consolas,monospace}svg{display:block}
@media (max-width:720px){.pair{grid-template-columns:1fr;min-width:0}table{font-size:.82rem}body{padding:.75rem}th,td{padding-inline:.2rem}td:first-child{white-space:normal}td.text{min-width:6rem}code{font-size:12px}}
"""


def html_page(title: str, body: Sequence[str]) -> str:
    """A complete page; ``body`` must already be HTML, ``title`` is plain text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe_text(title)}</title><style>{_CSS}</style></head>\n<body><main>\n<h1>{safe_text(title)}</h1>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], here: int | None = None) -> str:
    """A table that scrolls on a narrow screen; its headings and cells must already be HTML."""
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row)
        lines.append(f'<tr class="here">{cells}</tr>' if i == here else f"<tr>{cells}</tr>")
    texts = {i for row in rows[:1] for i, cell in enumerate(row) if cell.startswith("<td")}
    headings = "".join(f'<th scope="col"{" class=text" if i in texts else ""}>{h}</th>' for i, h in enumerate(head))
    return f'<div class="wide" tabindex="0"><table><thead><tr>{headings}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def figure(svg: str) -> str:
    """A figure that shrinks on a narrow screen while it stays readable, and then scrolls."""
    width = int(svg.partition(' width="')[2].partition('"')[0])
    return f'<div class="wide figure" tabindex="0" style="--least:{0.65 * width:.0f}px">{svg}</div>'


def figures(drawn: Sequence[str]) -> str:
    """Figures side by side, as many as fit in a row."""
    return f'<div class="figures">{"".join(map(figure, drawn))}</div>'


def note(text: str) -> str:
    """A line of explanation."""
    return f'<p class="soft note">{safe_text(text)}</p>'


def pair(cells: Sequence[str]) -> str:
    """Base and adapted in one cell: side by side, or stacked on a phone; a single cell is returned unchanged."""
    if len(cells) == 1:
        return cells[0]
    return f'<span class="pair"><span>{cells[0]}</span><span class="two">{cells[1]}</span></span>'


def signed(value: float) -> str:
    """A number with its sign, in the colour of gains or losses."""
    kind = "gain" if value > 0 else "loss" if value < 0 else "soft"
    return f'<span class="{kind}">{value:+.4f}</span>'
