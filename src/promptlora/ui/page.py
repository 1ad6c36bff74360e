"""The page: what stands where, and which button calls what. The work is done in ``studio``.

Every event that runs the model shares one queue with room for one at a time. A panel is shown while it has something
to show, and goes when a new adapter is being written; the style sees to that, since a plot that is set in the same
update as its panel's visibility is sometimes not drawn (Gradio 6.31).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from promptlora.errors import PromptLoRAError
from promptlora.inspect import token_life, visible_text
from promptlora.ui import html
from promptlora.ui.examples import EXAMPLES, Example
from promptlora.ui.figures import ablation_figure, attention_maps, change_figure
from promptlora.ui.studio import Inside, Studio

_HEAD = """<header class="pl-head"><h1>promptlora</h1>
<p>A prompt goes in, a LoRA comes out. A hypernetwork reads the prompt once and writes an adapter for every attention
projection of a frozen language model; the adapted model follows the prompt without having it in its context.</p></header>"""
_EXAMPLES = """<p class="pl-lead">Examples: each fills the boxes and runs. The hypernetwork in the package was trained on short
English tasks such as these; with prompts of another kind it may well fail.</p>"""
_CHANGES = """<p class="pl-lead">The Jensen–Shannon distance between the weights with and without the adapter, mean over tokens:
0 where nothing changes, 1 where they have nothing in common.</p>"""
_QUEUE = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private", "show_progress": "hidden"}
_NOW = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
_FIRST = "press an example, or the button: Ctrl+Enter in a box does the same"
_LATER = html.status("appears after the answers")
_WAITING = html.status("waiting for the model …", "busy")
KEYS = """<script>
document.addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.closest("#prompt, #inputs"))
    document.getElementById("go").click();
});
</script>"""


@dataclass(frozen=True)
class Asked:
    """What a visitor's page shows: kept on the server, one for each page."""

    prompt: str
    inputs: tuple[str, ...]
    inside: Inside | None = None
    chosen: int = 0

    @property
    def text(self) -> str:
        """The input whose attention is shown."""
        return self.inputs[self.chosen]


def _title(text: str, lead: str) -> gr.HTML:
    return gr.HTML(f'<h2 class="pl-title">{text}</h2><p class="pl-lead">{lead}</p>')


def _seen(yes: bool) -> Any:
    """``visible`` of a box that is in the page even when it is not seen, so that no update of it is lost."""
    return True if yes else "hidden"


def _skipped(count: int) -> tuple[Any, ...]:
    return (gr.skip(),) * count


def build_page(studio: Studio) -> gr.Blocks:
    """The page over a studio; ``launch`` is the caller's."""
    limits = studio.limits
    config: Any = studio.lm.model.config.get_text_config()
    layers, heads = int(config.num_hidden_layers), int(config.num_attention_heads)

    halted: set[str] = set()  # visitors who pressed Stop

    # --- what buttons do: generators of updates -------------------------------------------------------------

    def fill(one: Example) -> list[Any]:
        """The boxes of an example: status, prompt, number of inputs, inputs; the other boxes empty and hidden."""
        texts = [*one.inputs, *[""] * (limits.inputs - len(one.inputs))]
        boxes = [gr.Textbox(value=text, visible=_seen(i < len(one.inputs))) for i, text in enumerate(texts)]
        return [_WAITING, one.prompt, len(one.inputs), gr.Button(interactive=True), *boxes]

    def add(shown: int) -> list[Any]:
        """Show one more box: number of inputs, button, inputs."""
        shown = min(shown + 1, limits.inputs)
        boxes = [gr.Textbox(visible=_seen(i < shown)) for i in range(limits.inputs)]
        return [shown, gr.Button(interactive=shown < limits.inputs), *boxes]

    def halt(request: gr.Request) -> None:
        halted.add(str(request.session_hash))

    def run(request: gr.Request, prompt: str, longest: float, *boxes: str) -> Iterator[tuple[Any, ...]]:
        """Check, write the adapter, answer, offer the download; or end where the visitor says so."""
        same, visitor = gr.skip(), str(request.session_hash)
        halted.discard(visitor)
        try:
            text, found = studio.check_prompt(prompt), studio.check_inputs(boxes)
        except PromptLoRAError as error:
            yield html.status(str(error), "error"), gr.Button(interactive=False), *_skipped(8)
            return
        yield (
            html.status("writing the adapter …", "busy"),
            gr.Button(interactive=True),
            "",
            gr.DownloadButton(interactive=False),
            None,
            *(_LATER, ""),  # what was seen of the adapter before
            *(gr.Button(interactive=False), _LATER, ""),
        )
        try:
            one = studio.adapter(text)
            told = html.written(one, len(studio.adapters), limits.adapters)
            last = None
            for now in studio.answer(text, found, int(longest)):
                drawn = html.answers(now)
                if drawn != last:
                    last = drawn
                    yield html.status(f"{told} · answering …", "busy"), same, drawn, *_skipped(7)
                if visitor in halted:
                    halted.discard(visitor)
                    drawn = html.answers(replace(now, done=True))
                    yield (
                        html.status("stopped; the button starts again"),
                        gr.Button(interactive=False),
                        drawn,
                        *_skipped(7),
                    )
                    return
            archive = studio.export(text)
        except PromptLoRAError as error:
            yield html.status(str(error), "error"), gr.Button(interactive=False), *_skipped(8)
            return
        download = gr.DownloadButton(value=str(archive), interactive=True)
        measurable = html.status(f"on up to {limits.ablation_inputs} inputs; takes some seconds")
        yield (
            html.status(told, "done"), gr.Button(interactive=False), same, download, Asked(text, tuple(found)), same, same,
            gr.Button(interactive=True), measurable, same,
        )  # fmt: skip

    def first_look(asked: Asked | None) -> Iterator[tuple[Any, ...]]:
        """Look into the first input, unless there was no answer or one is shown already."""
        yield from () if asked is None or asked.inside is not None else look(asked, 0)

    def look(asked: Asked | None, choice: int | None) -> Iterator[tuple[Any, ...]]:
        """Find where the adapter acts in a text, and show the head that changes most."""
        if asked is None or (
            asked.inside is not None and choice == asked.chosen
        ):  # a box left by the tab key tells too
            yield _skipped(11)
            return
        chosen = choice if choice is not None and 0 <= choice < len(asked.inputs) else 0
        some = '<div class="pl-walk"></div>' if len(asked.inputs) > 1 else ""  # another input may be short enough
        names = [(f"{i}: {visible_text(text, 60)}", i - 1) for i, text in enumerate(asked.inputs, start=1)]
        dropdown = gr.Dropdown(choices=names, value=chosen)
        asked = replace(asked, inside=None, chosen=chosen)
        yield html.status("walking through attention …", "busy"), dropdown, *_skipped(9)
        try:
            inside = studio.inside(asked.prompt, asked.text)
        except PromptLoRAError as error:
            yield html.status(str(error), "error"), dropdown, *_skipped(3), None, some, None, None, None, asked
            return
        asked = replace(asked, inside=inside)
        token = len(inside.tokens) - 1
        drawn = show(asked, token, inside.layer, inside.head)
        yield (
            drawn[0],
            dropdown,
            gr.Slider(maximum=max(token, 1), value=token),
            gr.Slider(value=inside.layer),
            gr.Slider(value=inside.head),
            change_figure(inside),
            *drawn[1:],
            asked,
        )

    def show(asked: Asked | None, token: float, layer: float, head: float) -> tuple[Any, ...]:
        """One token, layer and head: status, walk, three maps."""
        if asked is None or asked.inside is None:
            return _LATER, *_skipped(4)
        at = (int(token), int(layer), int(head))
        most = f"the adapter changes layer {asked.inside.layer}, head {asked.inside.head} most"
        try:
            capture = studio.capture(asked.prompt, asked.text, at[1])
            strip = html.token_strip(capture.tokens, at[0])
            if capture.base[at[1]].softmax is None:
                told = html.status(f"token {at[0]}, layer {at[1]}: no softmax weights; {most}", "done")
                return told, strip + html.no_softmax(capture, at[1], at[0]), None, None, None
            life = token_life(capture, *at)
            maps = attention_maps(capture, at[1], at[2], at[0])
        except PromptLoRAError as error:
            return html.status(str(error), "error"), "", None, None, None
        told = html.status(f"token {at[0]}, layer {at[1]}, head {at[2]}; {most}", "done")
        return told, strip + html.walk(capture, life), *maps

    def ablate(asked: Asked | None) -> Iterator[tuple[Any, ...]]:
        """Switch the adapter on for q, k, v, o by themselves: status, figure, table."""
        if asked is None:
            yield _LATER, *_skipped(2)
            return
        yield html.status("measuring q, k, v, o, q+k and all …", "busy"), *_skipped(2)
        try:
            found = studio.ablation(asked.prompt, asked.inputs)
        except PromptLoRAError as error:
            yield html.status(str(error), "error"), None, ""
            return
        told = html.status(f"measured on {found.inputs} of {len(asked.inputs)} inputs", "done")
        yield told, ablation_figure(found), html.ablation(found)

    # --- what stands where ----------------------------------------------------------------------------------

    with gr.Blocks(title="promptlora", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        asked, shown = gr.State(None), gr.State(len(EXAMPLES[0].inputs))
        gr.HTML(_HEAD)
        gr.HTML(_EXAMPLES)
        with gr.Row(elem_id="examples"):
            examples = [gr.Button(one.name, size="sm", min_width=90) for one in EXAMPLES]
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280):
                prompt = gr.Textbox(
                    EXAMPLES[0].prompt, lines=5, max_lines=12, label="Prompt", elem_id="prompt",
                    info=f"Becomes the adapter: an instruction, a rule, a short document; up to "
                    f"{studio.lm.hypernetwork.config.max_prompt_tokens} tokens.",
                )  # fmt: skip
                longest = gr.Slider(
                    4, limits.new_tokens, value=32, step=4, label="Longest answer, in tokens", elem_id="longest"
                )
            with gr.Column(min_width=280, elem_id="inputs"):
                boxes = [
                    gr.Textbox(
                        "".join(EXAMPLES[0].inputs[i : i + 1]), visible=_seen(i < len(EXAMPLES[0].inputs)), lines=2, max_lines=8,
                        label=f"Input {i + 1}", elem_id=f"input-{i + 1}", placeholder="left out if empty",
                    )
                    for i in range(limits.inputs)
                ]  # fmt: skip
                more = gr.Button("Add an input", size="sm", elem_id="more")
        with gr.Row():
            go = gr.Button("Write the adapter and answer", variant="primary", min_width=220, elem_id="go")
            stop = gr.Button("Stop", min_width=80, scale=0, interactive=False, elem_id="stop")
            download = gr.DownloadButton(
                "Download the adapter (PEFT, zip)", interactive=False, min_width=220, elem_id="download"
            )
        status = gr.HTML(html.status(_FIRST), elem_id="status")
        found = gr.HTML("", elem_id="answers")

        _title(
            "Inside one head",
            "One token asks every token before it. Choose input, token, layer and head; base and adapted stand side by side.",
        )
        look_status = gr.HTML(_LATER, elem_id="look-status")
        with gr.Column(elem_id="look-panel"):
            with gr.Row():
                which = gr.Dropdown(choices=[], label="Input", min_width=220, elem_id="which")
                token, layer, head = (
                    gr.Slider(0, most, value=0, step=1, label=name, min_width=200, buttons=[], elem_id=name.lower())
                    for name, most in (("Token", 1), ("Layer", layers - 1), ("Head", heads - 1))
                )
            with gr.Row():
                maps = [
                    gr.Plot(show_label=False, min_width=300, elem_id=f"map-{name}")
                    for name in ("base", "adapted", "difference")
                ]
            walked = gr.HTML("", elem_id="walk")
            with gr.Accordion("Which layers and heads change", open=True):
                gr.HTML(_CHANGES)
                changes = gr.Plot(show_label=False, elem_id="changes")

        _title("What each projection does", "The adapter switched on for q, k, v or o alone, for q and k, and for all.")
        measure = gr.Button("Measure", min_width=120, interactive=False, elem_id="measure")
        measure_status = gr.HTML(_LATER, elem_id="measure-status")
        with gr.Row(elem_id="effect-panel"):
            effect = gr.Plot(show_label=False, min_width=300, elem_id="effect")
            table = gr.HTML("", min_width=300, elem_id="effect-table")

        # --- events -----------------------------------------------------------------------------------------

        look_outputs = [look_status, which, token, layer, head, changes, walked, *maps, asked]
        run_outputs = [status, stop, found, download, asked, look_status, walked, measure, measure_status, table]

        def chain(before: Any) -> None:
            first = before.then(run, [prompt, longest, *boxes], run_outputs, **_QUEUE)
            first.then(first_look, asked, look_outputs, **_QUEUE)

        # the visitor sees at once that a click was heard, also while others are served
        for trigger in (go.click, prompt.submit, *(box.submit for box in boxes)):
            chain(trigger(lambda: _WAITING, None, status, **_NOW))
        for button, one in zip(examples, EXAMPLES, strict=True):
            chain(button.click(lambda one=one: fill(one), None, [status, prompt, shown, more, *boxes], **_NOW))
        more.click(add, shown, [shown, more, *boxes], **_NOW)
        stop.click(halt, None, None, **_NOW)
        which.input(look, [asked, which], look_outputs, trigger_mode="always_last", **_QUEUE)
        for slider in (token, layer, head):
            slider.input(
                show, [asked, token, layer, head], [look_status, walked, *maps], trigger_mode="always_last", **_QUEUE
            )
        measure.click(ablate, asked, [measure_status, effect, table], **_QUEUE)
    return page
