"""The page: its layout, and which event calls which action.

All events that run the model share one queue that runs one event at a time; Gradio shows the position in the queue. A
section is visible only while it has content; the style takes care of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any

import gradio as gr

from promptlora.ui import html
from promptlora.ui.actions import FIRST, WAITING, Actions
from promptlora.ui.examples import EXAMPLES
from promptlora.ui.script import ADDRESS, CLICKS, RERUN
from promptlora.ui.studio import Studio

_HEAD = """<header class="pl-head"><h1>promptlora</h1>
<p>A prompt goes in, a LoRA comes out. A hypernetwork reads the prompt once and writes an adapter for every attention
projection of a frozen language model; the adapted model follows the prompt without having it in its context.</p></header>"""
_EXAMPLES = """<p class="pl-lead">Examples: each fills the boxes and runs. The hypernetwork in the package was trained on short
English tasks such as these; with prompts of another kind it may well fail.</p>"""
_LOOK = """One token asks every token before it. The head that opens is the one whose attention weights the adapter changes most at
the last token, from which the answer starts: the Jensen–Shannon distance between its weights with and without the adapter is
the largest (0: equal, 1: nothing in common). Click a token, a cell or a head, or use the sliders. The page's address is a link to
what is shown."""
_COMPARE = (
    "The adapter of a second prompt answers the same inputs, and both are placed among the adapters of known tasks."
)
_REFINE = """A few gradient steps on rows of your own, from the generated adapter. Write one row a line, as <code>input =&gt; output</code>;
from 8 rows on, a quarter of them is kept back and decides which step is best."""
_QUEUE = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private", "show_progress": "minimal"}
_NOW = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def _title(text: str, lead: str) -> gr.HTML:
    return gr.HTML(f'<h2 class="pl-title">{text}</h2><p class="pl-lead">{lead}</p>')


def _named(action: Callable[..., Any], parts: dict[str, Any]) -> Callable[..., Any]:
    """Wrap an action so that its updates are keyed by component instead of by name."""

    def told(update: dict[str, Any]) -> dict[Any, Any]:
        return {parts[name]: value for name, value in update.items()}

    @wraps(action)
    def once(*args: Any) -> Any:
        return told(action(*args))

    @wraps(action)
    def steps(*args: Any) -> Any:
        for update in action(*args):
            yield told(update)

    return steps if isgeneratorfunction(action) else once


def build_page(studio: Studio) -> gr.Blocks:
    """Build the page for a studio; the caller has to launch it."""
    limits, actions = studio.limits, Actions(studio)
    config: Any = studio.lm.model.config.get_text_config()
    layers, heads = int(config.num_hidden_layers), int(config.num_attention_heads)
    parts: dict[str, Any] = {}

    def add(name: str, part: Any) -> Any:
        parts[name] = part
        return part

    def text(name: str, value: str = "", **options: Any) -> gr.HTML:
        """An HTML component with a name; its id is the name with dashes."""
        return add(name, gr.HTML(value, elem_id=name.replace("_", "-"), **options))

    with gr.Blocks(title="promptlora", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        for name, value in (("asked", None), ("link", None), ("shown", len(EXAMPLES[0].inputs))):
            add(name, gr.State(value))
        address = gr.Textbox(visible=False)
        gr.HTML(_HEAD)
        gr.HTML(_EXAMPLES)
        with gr.Row(elem_id="examples"):
            examples = [gr.Button(one.name, size="sm", min_width=90) for one in EXAMPLES]
        with gr.Row(equal_height=False):
            with gr.Column(min_width=280):
                prompt = add("prompt", gr.Textbox(
                    EXAMPLES[0].prompt, lines=5, max_lines=12, label="Prompt", elem_id="prompt",
                    info=f"Becomes the adapter: an instruction, a rule, a short document; up to "
                    f"{studio.lm.hypernetwork.config.max_prompt_tokens} tokens.",
                ))  # fmt: skip
                longest = add("longest", gr.Slider(
                    4, limits.new_tokens, value=32, step=4, label="Longest answer, in tokens", elem_id="longest"
                ))  # fmt: skip
            with gr.Column(min_width=280, elem_id="inputs"):
                boxes = [
                    add(f"input-{i + 1}", gr.Textbox(
                        "".join(EXAMPLES[0].inputs[i : i + 1]), visible=True if i < len(EXAMPLES[0].inputs) else "hidden",
                        lines=2, max_lines=8, label=f"Input {i + 1}", elem_id=f"input-{i + 1}", placeholder="left out if empty",
                    ))
                    for i in range(limits.inputs)
                ]  # fmt: skip
                more = add("more", gr.Button("Add an input", size="sm", elem_id="more"))
        with gr.Row():
            go = gr.Button("Write the adapter and answer", variant="primary", min_width=220, elem_id="go")
            stop = add("stop", gr.Button("Stop", min_width=80, scale=0, interactive=False, elem_id="stop"))
            add("download", gr.DownloadButton(
                "Download the adapter (PEFT, zip)", interactive=False, min_width=220, elem_id="download"
            ))  # fmt: skip
        text("status", html.status(FIRST))
        text("near")
        text("answers")

        with gr.Column(elem_id="look-section"):
            _title("What the adapter changes", _LOOK)
            text("look_status")
            which = add("which", gr.Dropdown(choices=[], label="Input", elem_id="which", visible="hidden"))
            with gr.Column(elem_id="look-panel"):
                with gr.Row(equal_height=False, elem_id="glance"):
                    text("likely", min_width=300)
                    changes = text("changes", min_width=300, js_on_load=CLICKS)
                with gr.Row():
                    token, layer, head = (
                        add(name.lower(), gr.Slider(
                            0, most, value=0, step=1, label=name, min_width=200, buttons=[], elem_id=name.lower()
                        ))
                        for name, most in (("Token", 1), ("Layer", layers - 1), ("Head", heads - 1))
                    )  # fmt: skip
                folded = gr.Checkbox(True, label="Fold the tokens of the chat template", elem_id="folded")
                walk = text("walk", js_on_load=CLICKS)

        with gr.Column(elem_id="effect-section"):
            _title(
                "What each projection does", "The adapter switched on for q, k, v or o alone, for q and k, and for all."
            )
            measure = gr.Button("Measure", min_width=120, elem_id="measure")
            text("measure_status")
            text("effect")

        with gr.Column(elem_id="compare-section"):
            _title("Two prompts side by side", _COMPARE)
            other = add("other", gr.Textbox(label="A second prompt", lines=2, max_lines=8, elem_id="other"))
            compare = gr.Button("Compare", min_width=120, elem_id="compare")
            text("compare_status")
            text("compared")

        with gr.Column(elem_id="refine-section"):
            _title("Refine", _REFINE)
            rows = add(
                "rows",
                gr.Textbox(
                    label="Rows", lines=5, max_lines=16, elem_id="rows",
                    placeholder="The soup was cold. => negative\nWe will come again. => positive",
                ),
            )  # fmt: skip
            with gr.Row():
                refine = gr.Button("Refine", min_width=120, elem_id="refine")
                steps = gr.Slider(
                    4, limits.steps, value=min(20, limits.steps), step=4, label="Most steps", elem_id="steps"
                )
                add("refined_download", gr.DownloadButton("Download the refined adapter (PEFT, zip)", visible=False))
            text("refine_status")
            text("curve")
            text("refined")

        # --- events -----------------------------------------------------------------------------------------

        def outputs(names: Sequence[str]) -> list[Any]:
            return [parts[name] for name in names]

        filled = outputs(["status", "prompt", "longest", "shown", "more", "link", "other", "rows", *(f"input-{i + 1}" for i in range(limits.inputs))])  # fmt: skip
        looked = outputs(
            ["look_status", "which", "token", "layer", "head", "likely", "changes", "walk", "asked", "link"]
        )
        cleared = ("measure_status", "effect", "compare_status", "compared", "refine_status", "curve", "refined")
        ran = outputs(
            [
                "status",
                "stop",
                "near",
                "answers",
                "download",
                "asked",
                "look_status",
                "likely",
                "changes",
                "walk",
                *cleared,
            ]
        )
        ran.append(parts["refined_download"])

        def queued(*where: str) -> dict[str, Any]:
            return {**_QUEUE, "show_progress_on": outputs(where)}

        def chain(before: Any) -> None:
            first = before.then(_named(actions.run, parts), [prompt, longest, *boxes], ran, **queued("status"))
            first.then(
                _named(actions.first_look, parts), [parts["asked"], parts["link"], folded], looked, **queued("look_status")
            )  # fmt: skip

        # the visitor sees at once that the click was received, even while other visitors are served
        for trigger in (go.click, prompt.submit, *(box.submit for box in boxes)):
            chain(trigger(lambda: WAITING, None, parts["status"], **_NOW))
        for button, one in zip(examples, EXAMPLES, strict=True):
            chain(button.click(lambda one=one: _named(actions.fill, parts)(one), None, filled, **_NOW))
        restored = page.load(_named(actions.restore, parts), address, filled, js=ADDRESS, **_NOW)
        restored.then(None, None, None, js=RERUN)
        more.click(_named(actions.add, parts), parts["shown"], filled, **_NOW)
        stop.click(actions.halt, None, None, **_NOW)

        which.input(
            _named(actions.look, parts), [parts["asked"], which, folded], looked, trigger_mode="always_last",
            **queued("look_status"),
        )  # fmt: skip
        for slider in (token.input, layer.input, head.input, folded.change):
            slider(
                _named(actions.slide, parts), [parts["asked"], token, layer, head, folded], looked, trigger_mode="always_last",
                **queued("look_status"),
            )  # fmt: skip
        for drawn in (changes, walk):
            drawn.select(
                _named(actions.pick, parts), [parts["asked"], token, layer, head, folded], looked, trigger_mode="always_last",
                **queued("look_status"),
            )  # fmt: skip
        measure.click(
            _named(actions.ablate, parts), parts["asked"], outputs(["measure_status", "effect"]), **queued("measure_status")
        )  # fmt: skip
        compare.click(
            _named(actions.compare, parts), [parts["asked"], other], outputs(["compare_status", "compared"]),
            **queued("compare_status"),
        )  # fmt: skip
        refine.click(
            _named(actions.refine, parts), [parts["asked"], rows, steps],
            outputs(["refine_status", "curve", "refined", "refined_download"]), **queued("refine_status"),
        )  # fmt: skip
    return page
