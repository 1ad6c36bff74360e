"""What the page of `promptlora ui` is made of, without a browser: the studio, its fragments of HTML, links, figures."""

from __future__ import annotations

import re
import socket
import zipfile
from pathlib import Path

import pytest
import torch

from promptlora.adapt.prompt_lora import PromptLoRA, shipped_hypernetwork
from promptlora.adapt.streaming import stream_rows
from promptlora.cli import main
from promptlora.errors import DataError, PromptError
from promptlora.hypernet.network import HyperNetwork
from promptlora.injection import HookBasedLoRAInjector
from promptlora.inspect import (
    Fold,
    capture_attention,
    capture_ids,
    flow_diagram,
    flow_figure,
    heat_map,
    most_changed,
    template_tokens,
    token_life,
)
from promptlora.inspect.life import change_at_tokens
from promptlora.inspect.sections import Column
from promptlora.text import encode_chat, render_chat
from promptlora.ui import Limits, Studio
from promptlora.ui import html as fragments
from promptlora.ui.examples import EXAMPLES
from promptlora.ui.kept import Kept
from promptlora.ui.links import read_link
from promptlora.ui.look import Place, no_softmax, walk
from promptlora.ui.values import SILENT, WRITTEN, Inside

from .architectures import CASES, build
from .helpers import random_lora, token_ids

HOSTILE = (
    "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'> ${window.hacked=1} {{value}} `x` <b>&amp;"
)


def test_the_least_used_is_dropped_first():
    dropped = []
    kept: Kept[int] = Kept(2, lambda key, value: dropped.append((key, value)))
    kept.put("a", 1)
    kept.put("b", 2)
    assert kept.get("a") == 1  # now b is the least used
    kept.put("c", 3)
    assert dropped == [("b", 2)]
    assert (kept.get("a"), kept.get("b"), kept.get("c"), len(kept)) == (1, None, 3, 2)


def test_text_is_never_markup_nor_template():
    shown = fragments.safe(HOSTILE + '" onmouseover="x')
    assert not set("<>\"'`${}") & set(re.sub(r"&#?\w+;", "", shown))
    assert HOSTILE not in fragments.status(HOSTILE)


@pytest.fixture
def studio(lm, tmp_path):
    return Studio(lm, tmp_path, base_name="a/base", limits=Limits(adapters=2, walk_tokens=24, ablation_inputs=1))


@pytest.mark.real
@pytest.mark.parametrize(
    ("prompt", "inputs", "said"),
    [
        ("  \n", ["hello"], "prompt is empty"),
        ("a" * 100_000, ["hello"], "100,000 characters"),
        ("word " * 2_000, ["hello"], "at most 512"),
        ("Translate.", ["", " \n \n", None], "no input"),
        ("Translate.", ["x"] * 7, "7 inputs"),
        ("Translate.", ["fine", "", "x" * 2_001], "input 3 has 2,001 characters"),
    ],
)
def test_limits_are_told_plainly(studio, prompt, inputs, said):
    with pytest.raises(PromptError, match=said):
        list(studio.answer(studio.check_prompt(prompt), studio.check_inputs(inputs), 4))


@pytest.mark.real
def test_rows_of_one_batch_are_what_generate_says(lm, studio):
    """The base rows go through an adapter of zeros and are the base's; the adapted ones are the adapter's."""
    text, prompt = "good morning", "Translate to Spanish."
    *steps, found = studio.answer(prompt, [text], 6)
    assert found.done
    lengths = [len(step.base[0]) for step in steps]  # piece by piece
    assert lengths[0] == 0
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 2
    assert found.base[0] == lm.generate(text, max_new_tokens=6)
    assert found.in_context[0] == lm.generate(text, in_context=prompt, max_new_tokens=6)
    assert found.adapted[0] == lm.generate(text, lm.adapt(prompt), max_new_tokens=6)
    beside = lm.adapt(prompt, in_context=True)
    assert found.adapted_in_context[0] == lm.generate(text, beside, in_context=prompt, max_new_tokens=6)
    assert found.read[0] == tuple(lm.count_tokens([text, text], [None, prompt]))
    assert found.base[0] != found.adapted[0]


@pytest.mark.real
def test_an_input_may_have_several_lines(lm, studio):
    """Line breaks reach the model, and the page; only an empty box is left out."""
    text = "First line.\n\nThird line."
    assert studio.check_inputs(["", f" {text}\n", None, "another"]) == [text, "another"]
    *_, found = studio.answer("Write a title.", [text], 6)
    assert found.base[0] == lm.generate(text, max_new_tokens=6)
    assert found.read[0][0] == lm.count_tokens([text])[0] != lm.count_tokens([text.replace("\n", " ")])[0]
    assert f'dir="auto">{text}</h3>' in fragments.answers(found)


@pytest.mark.real
def test_an_answer_that_was_cut_says_so(studio):
    *_, short = studio.answer("Write a title.", ["Tell me a long story."], 4)
    assert short.cut == ((True,) * 4,)
    assert fragments.answers(short).count("cut at 4") == 4
    before, *_ = studio.answer("Write a title.", ["Tell me a long story."], 4)
    assert before.cut == ((False,) * 4,)  # not yet
    *_, whole = studio.answer("Write a title.", ["Good morning."], 16)
    assert whole.cut[0][0] is False  # it ended by itself
    assert fragments.answers(whole).count("cut at 16") == sum(whole.cut[0])


def test_a_layer_without_softmax_shows_what_it_has():
    case = next(case for case in CASES if case.model_type == "qwen3_next")
    model = build(case)
    with HookBasedLoRAInjector(model) as injector:
        capture = capture_ids(model, token_ids(1, 5)[0], injector, random_lora(injector.projections, dtype=model.dtype))
    shown = no_softmax(capture, 0, 4)
    assert "it has no softmax weights" in shown
    shares = capture.adapted[0].projections
    assert all(f"<td>{100 * float(shares[role].share[4]):.2f} %</td>" in shown for role in ("q", "k", "v", "z", "o"))
    assert f'<span class="pl-second">{float(capture.adapted[0].out[4].norm()):.3f}</span>' in shown
    layers, change = change_at_tokens(capture.base, capture.adapted)
    inside = Inside(tokens=capture.tokens, template=(False,) * 5, layers=tuple(layers), change=change, likely=())
    assert "× gate" in walk(capture, inside, Place(4, 3, 0), folded=True)
    assert shown in walk(capture, inside, Place(4, 0, 0), folded=True)


@pytest.mark.real
def test_an_iterator_that_is_dropped_gives_the_model_back(lm, studio):
    stack = studio.adapter("Answer with one word.").stack
    rows = encode_chat(lm.tokenizer, [render_chat(lm.tokenizer, "Tell me a story.")] * 2)
    steps = stream_rows(lm.host, rows, stack, [SILENT, WRITTEN], max_new_tokens=90)
    next(steps)
    assert lm.host.turn.holder is None  # held by no one between two steps, so dropping it has nothing to give back
    steps.close()


@pytest.mark.real
def test_the_adapters_of_a_prompt_keep_the_shared_form(smollm, tmp_path):
    """What the shipped hypernetwork writes: cores between factors that both adapters have, one of them all zeros."""
    shipped = PromptLoRA(*smollm, HyperNetwork.from_pretrained(shipped_hypernetwork()).requires_grad_(False))
    try:
        written = Studio(shipped, tmp_path, base_name="a/base").adapter("Write a title.")
        assert written.stack.is_shared
        assert written.stack.adapters == 3
        assert all(not delta.any() for delta in (written.stack.select(SILENT).delta(name) for name in written.stack))
        alone = shipped.adapt("Write a title.")
        assert all(torch.equal(written.lora.delta(name), alone.delta(name)) for name in alone)
    finally:
        shipped.close()


@pytest.mark.real
def test_adapters_are_kept_and_dropped_with_their_export(studio):
    first = studio.adapter("Write a title.")
    assert not first.reused
    assert studio.adapter(" Write a title.\n").reused
    archive = studio.export("Write a title.")
    assert {Path(name).name for name in zipfile.ZipFile(archive).namelist()} >= {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]
    studio.adapter("Translate to Spanish.")
    studio.adapter("Answer with one word.")
    assert not archive.exists()


@pytest.mark.real
def test_a_text_too_long_for_the_walk_is_refused(studio):
    with pytest.raises(PromptError, match="at most 24"):
        studio.inside("Write a title.", "word " * 60)
    with pytest.raises(PromptError, match="at most 24"):
        studio.ablation("Write a title.", ["word " * 60])


def test_a_port_in_use_is_one_line(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["ui", "--port", str(taken.getsockname()[1])]) == 2
    told = capsys.readouterr().err
    assert "choose another port" in told
    assert "in use" in told
    assert told.count("\n") == 1


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("promptlora.extras.find_spec", lambda name: None)
    assert main(["ui"]) == 2
    assert "promptlora[ui]" in capsys.readouterr().err


# --- examples and the shipped hypernetwork -----------------------------------------------------------------

_RIGHT = {
    "Sentiment": ("positive", "negative"),
    "Topic": ("sports", "business", "science"),
    "City": ("madrid", "osaka"),
    "Negation": ("the door is not open", "he does not like tea"),
}


@pytest.fixture(scope="module")
def shipped(smollm, tmp_path_factory):
    model = PromptLoRA(*smollm, HyperNetwork.from_pretrained(shipped_hypernetwork()).requires_grad_(False))
    yield Studio(model, tmp_path_factory.mktemp("shipped"), base_name="a/base")
    model.close()


@pytest.mark.real
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_every_example_works_on_the_first_click(shipped, example):
    *_, found = shipped.answer(example.prompt, example.inputs, 12)
    for i, answer in enumerate(found.adapted):
        assert answer.strip()
        assert answer not in (found.base[i], example.inputs[i])
        if example.name in _RIGHT:
            assert answer.lower().strip(" .") == _RIGHT[example.name][i]
        if example.name == "Question":
            assert answer.endswith("?")


@pytest.mark.real
def test_a_far_prompt_is_told_with_a_warning(lm, shipped, studio):
    near, far = shipped.distance(EXAMPLES[2].prompt), shipped.distance("Write a pirate story in Klingon verse.")
    assert 'data-kind="near"' in fragments.nearness(near)
    assert "no promise" in fragments.nearness(near)
    assert 'data-kind="warn"' in fragments.nearness(far)
    assert "far from all training prompts" in fragments.nearness(far)
    assert fragments.nearness(studio.distance("Write a title.")) == ""  # this hypernetwork cannot say


# --- attention ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captured(lm):
    text, lora = "The cat sat.", lm.adapt("Translate to Spanish.")
    return text, capture_attention(lm, text, lora)


@pytest.mark.real
def test_the_head_that_opens_is_the_one_that_changes_most_at_the_last_token(studio, captured):
    """The page, `inspect` and its report mean the same by it: the largest distance at the token that is followed."""
    text, capture = captured
    inside = studio.inside("Translate to Spanish.", text)
    for token in (len(capture.tokens) - 1, 9):
        layer, head, distance = inside.most(token)
        assert (layer, head) == most_changed(capture, token)
        assert distance == pytest.approx(float(inside.change[..., token].max()))
    assert inside.most(9)[:2] != inside.most(len(capture.tokens) - 1)[:2]
    best = capture.adapted.next_token.argmax()
    assert inside.likely[0].adapted == pytest.approx(float(capture.adapted.next_token[best].exp()), abs=1e-6)
    assert inside.likely[0].base == pytest.approx(float(capture.base.next_token[best].exp()), abs=1e-6)


@pytest.mark.real
@pytest.mark.parametrize("text", ["The cat sat.", "0 and 1", "\u00e9\u00e8 <|im_end|> x"])
def test_the_tokens_of_the_template_are_folded(lm, text):
    capture = capture_attention(lm, text, layers=[3])
    marked = template_tokens(lm, text)
    own = "".join(token for token, template in zip(capture.tokens, marked, strict=True) if not template)
    assert own == text or "\u00e9" in text  # half characters are shown as the tokenizer writes them
    fold = Fold.of(capture.tokens, marked)
    assert sorted(i for group in fold.groups for i in group) == list(range(len(capture.tokens)))
    assert fold.groups[-1] == (len(capture.tokens) - 1,)  # the answer starts there
    table = fold.table(capture.base[3].weights(2), capture.base[3].softmax.visible[0])
    assert table.shape == (len(fold.single), len(fold.groups))
    assert table.nansum(dim=-1).tolist() == pytest.approx([1.0] * len(fold.single))
    assert Fold.of(capture.tokens, [False] * len(marked)).groups == tuple((i,) for i in range(len(marked)))


@pytest.mark.real
def test_the_diagram_holds_the_numbers_of_the_walk(captured):
    _, capture = captured
    last = len(capture.tokens) - 1
    plain = Fold.of(capture.tokens, [False] * len(capture.tokens))
    life = token_life(capture, last, 12, 3)
    drawn = flow_diagram(life, plain, key=1)
    for name in ("x", "q", "mixed", "out", "residual_before", "residual_after"):
        for side in (life.base, life.adapted):
            assert f"{float(getattr(side, name).norm()):.3f}" in drawn, name
    top = int(life.adapted.weights.argmax())
    assert f"{float(life.adapted.weights[top]):.3f}" in drawn
    assert f"{float(life.adapted.masked[top]):.2f}" in drawn
    assert f"adapter {100 * life.adapted.shares['q'][2]:.1f} %" in drawn
    assert 'data-at="token=1"' in drawn  # the key that was clicked is shown, however small its weight
    whole = flow_figure([token_life(capture, i, 12, 3) for i in range(last + 1)], plain, last)
    assert whole.count('class="step') == last + 1
    assert whole.count('href="#token-') == last + 1
    assert "<script" not in whole


def test_what_rounding_leaves_is_drawn_as_nothing():
    drawn = heat_map(torch.tensor([[0.0, -8.9e-17], [1e-16, 0.0]]), "ab", "cd", "Change", signed=True)
    assert "nothing changes" in drawn
    assert "e-1" not in drawn
    assert "-0.0" not in drawn
    assert Column("change", "+.4f").shown(-8.9e-17) == ""
    assert Column("change", "+.4f").shown(-0.01) == "-0.0100"
    assert Column("q·k").shown(-8.9e-17) == "0.000"


# --- what visitors bring -----------------------------------------------------------------------------------


def test_an_address_is_read_with_care():
    limits = Limits()
    whole = "#prompt=Say+%22a%26b%22.&input=one%0Atwo&input=three&longest=8&other=B&token=5&layer=2&head=1&run=1"
    link = read_link(whole, limits)
    assert (link.prompt, link.inputs, link.longest) == ('Say "a&b".', ("one\ntwo", "three"), 8)
    assert (link.other, link.token, link.layer, link.head, link.chosen) == ("B", 5, 2, 1, 0)
    assert read_link("", limits) is None
    assert read_link("#elsewhere", limits) is None
    assert read_link("#" + "&".join(f"x{i}=1" for i in range(100)), limits) is None
    odd = read_link(
        "#prompt=x&longest=9999999&token=-1&layer=²&head=1e9&input=" + "y" * 9_999 + "&input=z" * 20, limits
    )
    assert (odd.longest, odd.token, odd.layer, odd.head) == (32, None, None, None)
    assert len(odd.inputs) == limits.inputs
    assert len(odd.inputs[0]) == limits.input_characters + 1  # and is refused when it is run


@pytest.mark.real
def test_rows_are_lines_with_an_arrow(studio):
    assert studio.check_rows("a => b\n\n  c=>d => e ") == [("a", "b"), ("c=>d", "e")]
    for lines, said in (
        ("a => b\nno arrow", "line 2"),
        ("a =>\nb => c", "line 1"),
        ("a => b", "1 of them"),
        ("", "0 of them"),
        ("a => b\n" * 65, "65 of them"),
        (f"a => {'b' * 2_001}\nc => d", "characters"),
    ):
        with pytest.raises(DataError, match=said):
            studio.check_rows(lines)


@pytest.mark.real
def test_a_refinement_shows_its_steps_and_answers_twice(lm, studio):
    rows = [("good", "A"), ("bad", "B")]
    *steps, found = studio.refine("Rate it.", rows, ["fine"], 2, 4)
    assert [one.step for one in steps] == [1, 2]
    generated, refined = found.answers[0]
    assert generated == lm.generate("fine", lm.adapt("Rate it."), max_new_tokens=4)
    assert found.archive.is_file()
    drawn = fragments.loss_curve(steps, 2)
    assert f"rows of the step: {steps[-1].loss[0]:.3f}" in drawn
    assert "all rows are learned" in fragments.refined(found)
    assert refined in fragments.refined(found)
    going = studio.refine("Rate it.", rows, ["fine"], 40, 4)
    next(going)
    going.close()  # who leaves ends it, and the model is free
    assert lm.host.turn.holder is None


@pytest.mark.real
def test_two_prompts_stand_side_by_side(lm, studio):
    found = studio.compare("Write a title.", "Translate to Spanish.", ["good morning"], 4)
    both = [lm.generate("good morning", lm.adapt(prompt), max_new_tokens=4) for prompt in found.prompts]
    assert found.answers == (tuple(both),)
    assert found.space.prompts[-2:] == found.prompts
    assert found.groups[-2:] == ("", "")
    assert found.space.prompts.count("Translate to Spanish.") == 1  # the map's own point of this prompt gives way
    shown = fragments.compared(found)
    assert 'data-who="A"' in shown
    assert 'data-who="B"' in shown
    assert f"{found.cosine:.3f}" in shown
