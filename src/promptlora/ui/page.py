"""The page: what stands where, and which button calls what. The work is done in ``studio``.

Every event that runs the model shares one queue with room for one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from promptlora.errors import PromptLoRAError
from promptlora.ui import html
from promptlora.ui.examples import EXAMPLES
from promptlora.ui.figures import ablation_figure, attention_maps, change_figure
from promptlora.ui.studio import Inside, Studio

_HEAD = """<header class="pl-head"><h1>promptlora</h1>
<p>A prompt goes in, a LoRA comes out. A hypernetwork reads the prompt once and writes an adapter for every attention
projection of a frozen language model; the adapted model follows the prompt without having it in its context.</p></header>"""
_QUEUE = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private", "show_progress": "hidden"}


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


def build_page(studio: Studio) -> gr.Blocks:
    """The page over a studio; ``launch`` is the caller's."""
    limits = studio.limits
    config: Any = studio.lm.model.config.get_text_config()
    layers, heads = int(config.num_hidden_layers), int(config.num_attention_heads)

    # --- what buttons do: generators of updates -------------------------------------------------------------

    def run(prompt: str, inputs: str, longest: float) -> Iterator[tuple[Any, ...]]:
        """Check, write the adapter, answer, offer the download: status, answers, download, asked."""
        same = gr.skip()
        try:
            text, found = studio.check_prompt(prompt), studio.check_inputs(inputs)
            yield html.status("writing the adapter …", "busy"), "", gr.DownloadButton(interactive=False), None
            one = studio.adapter(text)
            told = html.written(one, len(studio.adapters), limits.adapters)
            last = None
            for now in studio.answer(text, found, int(longest)):
                drawn = html.answers(now)
                if drawn != last:
                    last = drawn
                    yield html.status(f"{told} · answering …", "busy"), drawn, same, same
            archive = studio.export(text)
            yield (
                html.status(told, "done"),
                same,
                gr.DownloadButton(value=str(archive), interactive=True),
                Asked(text, tuple(found)),
            )
        except PromptLoRAError as error:
            yield html.status(str(error), "error"), same, same, None

    def look(asked: Asked | None, choice: int | None) -> Iterator[tuple[Any, ...]]:
        """Find where the adapter acts in a text, and show the head that changes most."""
        if asked is None:
            yield (gr.skip(),) * 11
            return
        chosen = choice if choice is not None and 0 <= choice < len(asked.inputs) else 0
        names = [(f"{i + 1}: {text[:60]}", i) for i, text in enumerate(asked.inputs)]
        dropdown = gr.Dropdown(choices=names, value=chosen, interactive=True)
        yield html.status("walking through attention …", "busy"), dropdown, *(gr.skip(),) * 9
        asked = Asked(asked.prompt, asked.inputs, None, chosen)
        try:
            inside = studio.inside(asked.prompt, asked.text)
        except PromptLoRAError as error:
            yield html.status(str(error), "error"), dropdown, *(gr.skip(),) * 3, None, "", None, None, None, asked
            return
        asked = Asked(asked.prompt, asked.inputs, inside, chosen)
        token = len(inside.tokens) - 1
        drawn = list(show(asked, token, inside.layer, inside.head))
        yield (
            drawn[0],
            dropdown,
            gr.Slider(maximum=max(token, 1), value=token, interactive=True),
            gr.Slider(value=inside.layer, interactive=True),
            gr.Slider(value=inside.head, interactive=True),
            change_figure(inside),
            *drawn[1:],
            asked,
        )

    def show(asked: Asked | None, token: float, layer: float, head: float) -> tuple[Any, ...]:
        """One token, layer and head: status, walk, three maps."""
        if asked is None or asked.inside is None:
            return html.status("press the button above first: there is no adapter to look into", "idle"), *(
                gr.skip(),
            ) * 4
        try:
            at = (int(token), int(layer), int(head))
            capture, life = studio.life(asked.prompt, asked.text, *at)
            maps = attention_maps(capture, at[1], at[2], at[0])
        except PromptLoRAError as error:
            return html.status(str(error), "error"), "", None, None, None
        most = f"the adapter changes layer {asked.inside.layer}, head {asked.inside.head} most"
        walked = html.token_strip(capture.tokens, at[0]) + html.walk(capture, life)
        return html.status(f"token {at[0]}, layer {at[1]}, head {at[2]}; {most}", "done"), walked, *maps

    def ablate(asked: Asked | None) -> Iterator[tuple[Any, ...]]:
        """Switch the adapter on for q, k, v, o by themselves: status, figure, table."""
        if asked is None:
            yield (
                html.status("press the button at the top first: there is no adapter to measure", "idle"),
                gr.skip(),
                gr.skip(),
            )
            return
        yield html.status("measuring q, k, v, o, q+k and all …", "busy"), gr.skip(), gr.skip()
        try:
            found = studio.ablation(asked.prompt, asked.inputs)
        except PromptLoRAError as error:
            yield html.status(str(error), "error"), None, ""
            return
        yield (
            html.status(f"measured on {found.inputs} of {len(asked.inputs)} inputs", "done"),
            ablation_figure(found),
            html.ablation(found),
        )

    # --- what stands where ----------------------------------------------------------------------------------

    with gr.Blocks(title="promptlora", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        asked = gr.State(None)
        gr.HTML(_HEAD)
        gr.HTML('<p class="pl-lead">Examples: each fills both boxes and runs.</p>')
        with gr.Row(elem_id="examples"):
            examples = [gr.Button(one.name, size="sm", min_width=90) for one in EXAMPLES]
        with gr.Row():
            prompt = gr.Textbox(
                EXAMPLES[0].prompt, lines=4, max_lines=10, min_width=280, label="Prompt", elem_id="prompt",
                info=f"Becomes the adapter: an instruction, a rule, a short document; up to "
                f"{studio.lm.hypernetwork.config.max_prompt_tokens} tokens.",
            )  # fmt: skip
            inputs = gr.Textbox(
                EXAMPLES[0].inputs, lines=4, max_lines=10, min_width=280, label="Inputs", elem_id="inputs",
                info=f"One a line, up to {limits.inputs}, each up to {limits.input_characters:,} characters.",
            )  # fmt: skip
        longest = gr.Slider(
            4, limits.new_tokens, value=32, step=4, label="Longest answer, in tokens", elem_id="longest"
        )
        with gr.Row():
            go = gr.Button("Write the adapter and answer", variant="primary", min_width=220, elem_id="go")
            stop = gr.Button("Stop", min_width=80, scale=0, elem_id="stop")
            download = gr.DownloadButton(
                "Download the adapter (PEFT, zip)", interactive=False, min_width=220, elem_id="download"
            )
        status = gr.HTML(
            html.status("press an example, or the button: Shift+Enter in a box does the same"), elem_id="status"
        )
        found = gr.HTML("", elem_id="answers")

        _title(
            "Inside one head",
            "One token asks every token before it. Choose input, token, layer and head; base and adapted stand side by side.",
        )
        look_status = gr.HTML(html.status("appears after the first answers"), elem_id="look-status")
        with gr.Row():
            which = gr.Dropdown(choices=[], label="Input", interactive=False, min_width=220, elem_id="which")
            token = gr.Slider(0, 1, value=0, step=1, label="Token", interactive=False, min_width=200, elem_id="token")
            layer = gr.Slider(
                0, layers - 1, value=0, step=1, label="Layer", interactive=False, min_width=200, elem_id="layer"
            )
            head = gr.Slider(
                0, heads - 1, value=0, step=1, label="Head", interactive=False, min_width=200, elem_id="head"
            )
        with gr.Row():
            maps = [
                gr.Plot(show_label=False, min_width=300, elem_id=f"map-{name}")
                for name in ("base", "adapted", "difference")
            ]
        walked = gr.HTML("", elem_id="walk")
        with gr.Accordion("Which layers and heads change", open=True):
            changes = gr.Plot(show_label=False, elem_id="changes")

        _title("What each projection does", "The adapter switched on for q, k, v or o alone, for q and k, and for all.")
        measure = gr.Button("Measure", min_width=120, elem_id="measure")
        measure_status = gr.HTML(
            html.status(f"on up to {limits.ablation_inputs} inputs; takes some seconds"), elem_id="measure-status"
        )
        with gr.Row():
            effect = gr.Plot(show_label=False, min_width=300, elem_id="effect")
            table = gr.HTML("", min_width=300, elem_id="effect-table")

        # --- events -----------------------------------------------------------------------------------------

        look_outputs = [look_status, which, token, layer, head, changes, walked, *maps, asked]
        running = []

        def chain(event: Any) -> None:
            first = event(run, [prompt, inputs, longest], [status, found, download, asked], **_QUEUE)
            then = first.then(first_look, asked, look_outputs, **_QUEUE)
            running.extend([first, then])

        def first_look(one: Asked | None) -> Iterator[tuple[Any, ...]]:
            yield from look(one, 0)

        for trigger in (go.click, prompt.submit, inputs.submit):
            chain(trigger)
        for button, one in zip(examples, EXAMPLES, strict=True):
            filled = button.click(
                lambda one=one: (one.prompt, one.inputs), None, [prompt, inputs], queue=False, api_visibility="private"
            )
            chain(filled.then)
        stop.click(
            lambda: html.status("stopped", "idle"), None, status, cancels=running, queue=False, api_visibility="private"
        )
        which.input(look, [asked, which], look_outputs, trigger_mode="always_last", **_QUEUE)
        for slider in (token, layer, head):
            slider.input(
                show, [asked, token, layer, head], [look_status, walked, *maps], trigger_mode="always_last", **_QUEUE
            )
        measure.click(ablate, asked, [measure_status, effect, table], **_QUEUE)
    return page
