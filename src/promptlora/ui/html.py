"""The studio's results as HTML fragments; all text from visitors and models is escaped.

It knows the studio's values; it knows nothing of Gradio. The style is in ``style``.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from promptlora.adapt.refine import RefineStep
from promptlora.hypernet.distance import PromptDistance
from promptlora.inspect.ablation import Ablation
from promptlora.inspect.curves import Curve, curves
from promptlora.inspect.drawing import heat_map, point_map, visible_text, without_style
from promptlora.ui.values import WHO, Answers, Compared, Refined, Written

# Gradio's HTML component treats its text as a template, so $, braces and backticks must be escaped.
_TEMPLATE = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;", "\x00": "\ufffd"})
_SHOWN = 6_000  # maximum number of characters of a text on the page


def safe(text: str) -> str:
    """Escape a text for HTML, including attributes, so that it contains no markup and no template syntax."""
    return escape(str(text)[:_SHOWN], quote=True).translate(_TEMPLATE)


def size(nbytes: int) -> str:
    """A human-readable size: 3.7 MB."""
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:.0f} kB"


def status(text: str, kind: str = "idle") -> str:
    """A status line: ``idle``, ``busy``, ``done``, ``near``, ``warn`` or ``error``; screen readers read it out."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="pl-status pl-{kind}" role="{role}" data-kind="{kind}">{safe(text)}</p>'


def written(one: Written, kept: int, capacity: int) -> str:
    """Time, size and shape of an adapter, for a status line."""
    lora = one.lora
    when = f"kept from before (it took {one.seconds:.2f} s)" if one.reused else f"written in {one.seconds:.2f} s"
    return (
        f"adapter {when} · {size(lora.nbytes)} · rank {lora.rank} · {len(lora)} projections · {kept} of {capacity} kept"
    )


def nearness(distance: PromptDistance | None) -> str:
    """The distance of the prompt from the training prompts, with a warning if it is far; empty if it is not known."""
    if distance is None:
        return ""
    told = str(distance) if distance.far else f"{distance} A near prompt is no promise of a good answer."
    return status(told, "warn" if distance.far else "near")


_WHO = (
    ("Base", "without the prompt"),
    ("In context", "the prompt stands before the input"),
    ("Adapted", "the prompt is in the weights, not in the context"),
    ("Adapted, in context", "the prompt is in the weights and before the input"),
)


def answers(found: Answers) -> str:
    """Four answers per input, side by side; in two columns on a tablet, stacked on a phone."""
    blocks = []
    for i, text in enumerate(found.inputs):
        cells = []
        for which, (name, (title, note)) in enumerate(zip(WHO, _WHO, strict=True)):
            said = str(getattr(found, name)[i])
            read = found.read[i][1 if name.endswith("in_context") else 0]
            told = f"{note} · {read} tokens read" + (f" · cut at {found.longest}" if found.cut[i][which] else "")
            waiting = "" if found.done else '<span class="pl-caret" aria-hidden="true"></span>'
            empty = '<span class="pl-soft">(no answer)</span>' if found.done and not said else ""
            cells.append(
                f'<div class="pl-cell pl-{name}"><h4>{title}</h4><p class="pl-soft">{told}</p>'
                f'<div class="pl-answer" dir="auto" data-who="{name}" data-input="{i}">{safe(said)}{waiting}{empty}</div></div>'
            )
        blocks.append(
            f'<section class="pl-block"><h3 class="pl-input" dir="auto">{safe(text)}</h3>'
            f'<div class="pl-four">{"".join(cells)}</div></section>'
        )
    return (
        f'<div class="pl-answers" aria-busy="{str(not found.done).lower()}" data-done="{str(found.done).lower()}">'
        f'<h2 class="pl-title">Answers</h2>{"".join(blocks)}</div>'
    )


def drawing(svg: str, name: str) -> str:
    """A figure that shrinks on a narrow screen while it stays readable, and then scrolls."""
    width = int(svg.partition(' width="')[2].partition('"')[0])
    return (
        f'<div class="pl-figure" tabindex="0" role="region" aria-label="{safe(name)}" '
        f'style="--least:{0.65 * width:.0f}px">{without_style(svg)}</div>'
    )


# --- ablation ----------------------------------------------------------------------------------------------


def ablation(found: Ablation) -> str:
    """What each choice of projections changes: a table, and heat maps of layers by choices."""
    rows = []
    for choice in found.choices:
        distance = float(found.attention[choice].nanmean()) if found.layers else 0.0
        output = float(found.output[choice].mean())
        rows.append(
            f'<tr data-choice="{safe(choice)}"><th scope="row" class="pl-text">{safe(choice)}</th><td>{distance:.4f}</td>'
            f"<td>{100 * output:.1f} %</td><td>{found.next_token[choice]:.3f}</td></tr>"
        )
    labels = [str(n) for n in found.layers]
    drawn = (
        drawing(
            heat_map(found.by_layer().T, found.choices, labels, "Change of attention", across="layer", cell=(20, 20)),
            "Change of attention, projections by layers",
        )
        if found.layers
        else ""
    )
    inputs = f"{found.inputs} input{'s' if found.inputs != 1 else ''}"
    return (
        '<div class="pl-two"><div><div class="pl-wide" tabindex="0" role="region" aria-label="What each projection changes">'
        '<table class="pl-ablation"><thead><tr>'
        '<th scope="col" class="pl-text">adapter on for</th><th scope="col">attention (JS distance)</th>'
        '<th scope="col">output of o</th><th scope="col">next token (KL, nats)</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div><p class='pl-soft'>Mean over {inputs}, all layers and heads, against the "
        "base. v and o alone cannot change attention in the first layer; what they change there reaches the attention of "
        f"later layers.</p></div>{drawn}</div>"
    )


# --- two prompts -------------------------------------------------------------------------------------------


def _both(inputs: Sequence[str], answers: Sequence[tuple[str, str]], names: tuple[str, str]) -> str:
    """Two answers per input, side by side."""
    blocks = []
    for text, pair in zip(inputs, answers, strict=True):
        cells = "".join(
            f'<div class="pl-cell"><h4>{name}</h4><div class="pl-answer" dir="auto" data-who="{name}">'
            f"{safe(said) or '<span class=pl-soft>(no answer)</span>'}</div></div>"
            for name, said in zip(names, pair, strict=True)
        )
        blocks.append(
            f'<section class="pl-block"><p class="pl-input" dir="auto">{safe(text)}</p>'
            f'<div class="pl-four">{cells}</div></section>'
        )
    return "".join(blocks)


def compared(found: Compared) -> str:
    """Two prompts side by side: their answers, their position among adapters of known tasks, their nearest prompts."""
    space, first = found.space, len(found.space.prompts) - 2
    names = {first: "A", first + 1: "B"}
    near = []
    for at, name in names.items():
        told = "; ".join(
            f"{safe(names.get(i, space.prompts[i]))} ({cosine:+.2f})" for i, cosine in space.nearest(at) if cosine > 0
        )
        near.append(
            f"<li><b>{name}</b> <q>{safe(visible_text(space.prompts[at], 120))}</q>: nearest {told or 'none'}</li>"
        )
    drawn = point_map(space.points, space.prompts, found.groups, "The map of adapters", names)
    return (
        f'<div class="pl-compared"><h3>Adapted answers</h3>{_both(found.inputs, found.answers, ("A", "B"))}<h3>Where the two adapters lie</h3>'
        f'<div class="pl-two">{drawing(drawn, "The map of adapters")}<div><p>Cosine similarity of the two whole weight '
        f"updates: <b>{found.cosine:.3f}</b>; with the mean of all adapters on the map taken off: "
        f"<b>{float(space.cosine_centred[-2, -1]):+.3f}</b>.</p><ul>{''.join(near)}</ul><p class='pl-soft'>Each point is the "
        "adapter of a prompt; prompts of one task share a mark. Near points have similar updates, as far as two dimensions "
        f"can show: the map keeps {100 * space.kept:.0f} % of the spread. Numbers behind the prompts are cosines with the "
        "mean taken off.</p></div></div></div>"
    )


# --- refinement --------------------------------------------------------------------------------------------


def loss_curve(steps: Sequence[RefineStep], most: int) -> str:
    """The loss on the rows of each step, and on the rows that are kept back, up to the current step."""
    learned = [(one.step, loss) for one in steps if (loss := one.loss[0]) is not None]
    kept = [(one.step, loss) for one in steps if (loss := one.kept_back[0]) is not None]
    lines = [Curve("rows of the step", "soft", learned)]
    if kept:
        lines.append(Curve("rows kept back", "hot", kept))
    drawn = curves(lines, "Loss in nats per token", steps=most)
    return f'<div class="pl-refining" data-steps="{len(steps)}">{drawing(drawn, "Loss of the refinement")}</div>'


def refined(found: Refined) -> str:
    """The refined answers beside the generated ones, and which step was kept."""
    loss = (
        ""
        if found.before is None or found.after is None
        else f" Loss of {'the rows kept back' if found.kept_back else 'the rows'}: {found.before:.3f} before, "
        f"{found.after:.3f} after."
    )
    kept = (
        "The generated adapter was the best; it is kept."
        if not found.best
        else f"The adapter of step {found.best} is kept."
    )
    judged = (
        ""
        if found.kept_back
        else " From 8 rows on, a quarter of them is kept back and decides which step is best; here all rows are learned."
    )
    note = f" {safe(found.note)}." if found.note else ""
    return (
        f'<div class="pl-refined"><h3>Answers of the generated and of the refined adapter</h3><p>{kept}{loss}{judged}{note}</p>'
        f"{_both(found.inputs, found.answers, ('Generated', 'Refined'))}</div>"
    )
