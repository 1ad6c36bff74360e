"""Write docs/attention.md and its figures from the real model and the shipped hypernetwork.

    python scripts/attention_page.py            # write the page and docs/figures/attention-*.svg
    python scripts/attention_page.py --check    # exit 1 when they are stale

Every number of the page comes from one run of promptlora.inspect. The check compares text exactly and numbers to
what another machine's float32 may change; where a sentence would no longer be true, the script stops.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from promptlora.adapt.prompt_lora import PromptLoRA  # noqa: E402
from promptlora.inspect import (  # noqa: E402
    AttentionCapture,
    Fold,
    TokenLife,
    ablate,
    adapter_space,
    bars,
    capture_attention,
    change_map,
    find_token,
    flow_figure,
    heat_map,
    most_changed,
    point_map,
    template_tokens,
    token_life,
    token_texts,
    visible_text,
)
from promptlora.lora import LoRAWeights  # noqa: E402

PAGE = ROOT / "docs" / "attention.md"
FIGURES = ROOT / "docs" / "figures"

TEXT = "The cat sat on the mat"
TOKEN, LAYER, HEAD = "sat", 13, 8
ANIMAL = "cat"
# The page shows the wording after which the adapted model gives ANIMAL the most probability as the first word.
WORDINGS = (
    "Name the animal in the sentence.",
    "Name the animal.",
    "Find the animal in the sentence.",
    "Find the animal in the sentence. Answer with one word.",
    "Which animal is in the sentence?",
    "Which animal is it? Answer with one word.",
    "Extract the name of the animal from the sentence.",
)
INPUTS = (TEXT, "I loved this film", "What is the capital of France?")
SPACE = (
    ("Translate to Spanish.", "translation"),
    ("Translate the sentence to French.", "translation"),
    ("Say it in German.", "translation"),
    ("Answer with one word: positive or negative.", "sentiment"),
    ("Is the review positive or negative?", "sentiment"),
    ("Does the writer like it? Answer positive or negative.", "sentiment"),
    ("Write a title for the article.", "title"),
    ("Give the text a short headline.", "title"),
    ("Suggest a title of a few words.", "title"),
    ("Answer the question with yes or no.", "yes or no"),
    ("Is the statement true? Say yes or no.", "yes or no"),
    ("Reply only with yes or no.", "yes or no"),
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def _vector(values: Tensor, count: int = 4) -> str:
    """The first numbers of a vector, and how many there are."""
    return "[" + ", ".join(f"{v:.3f}" for v in values[:count].tolist()) + f", …] ({len(values)} numbers)"


def _figure(name: str, words: str) -> str:
    return f"![{words}](figures/attention-{name}.svg)"


def _open_figure(name: str, words: str) -> str:
    """A figure that is a link to itself: opened alone, it answers clicks."""
    return f"[{_figure(name, words)}](figures/attention-{name}.svg)"


def _holds(true: bool, sentence: str) -> None:
    """Stop where the page would say what is not so."""
    if not true:
        raise SystemExit(f"scripts/attention_page.py: no longer true: {sentence}; mend the page's words")


# --- the base ----------------------------------------------------------------------------------------------


def _keys_table(life: TokenLife) -> str:
    side = life.base
    lines = [
        "| key | q·k | times scale | after the mask | e to that power | weight |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for i, token in enumerate(life.tokens):
        raw, scaled, weight = float(side.raw[i]), float(side.scaled[i]), float(side.weights[i])
        hidden = float(side.masked[i]) == -torch.inf
        after, power = (
            ("minus infinity", "0") if hidden else (f"{scaled:.3f}", f"{float(torch.tensor(scaled).exp()):.3f}")
        )
        lines.append(f"| {token.strip()} | {raw:.3f} | {scaled:.3f} | {after} | {power} | {weight:.3f} |")
    total = float(side.scaled[: life.token + 1].exp().sum())
    lines.append(f"| **sum** | | | | {total:.3f} | {float(side.weights.sum()):.3f} |")
    return "\n".join(lines)


def base_part(lm: PromptLoRA, figures: dict[str, str]) -> tuple[str, float]:
    """From x to the new x in one head of the base."""
    capture = capture_attention(lm, TEXT, raw=True)
    at = find_token(capture.tokens, TOKEN)
    life = token_life(capture, at, LAYER, HEAD)
    layer = capture.base[LAYER]
    part = layer.softmax
    assert part is not None
    assert layer.residual_after is not None
    side, tokens = life.base, capture.tokens
    cat = find_token(tokens, "cat")
    _holds(int(side.weights.argmax()) == cat and float(side.weights[cat]) > 0.7, "'sat' looks mostly at 'cat'")
    others = [int(part.weights[part.at(HEAD), i].argmax()) for i in range(cat + 1, len(tokens) - 1)]
    _holds(set(others) == {cat}, "the words after 'cat', but the last, look at it too")
    figures["head"] = heat_map(
        layer.weights(HEAD), tokens, tokens, f"Layer {LAYER}, head {HEAD}", across="looked at", down="who looks", top=1.0,
        mark=(at, cat), cell=(34, 26),
    )  # fmt: skip
    figures["row"] = bars(side.weights.tolist(), tokens, f"Where '{TOKEN}' looks, layer {LAYER}, head {HEAD}")
    lives = [token_life(capture, i, LAYER, HEAD) for i in range(len(tokens))]
    figures["flow"] = flow_figure(lives, Fold.of(tokens, [False] * len(tokens)), at)
    hidden, width, heads, layers = len(side.x), len(side.q), 9, len(capture.base.layers)
    _holds(part.q.shape[0] == heads == 3 * len(set(part.key_heads)), "nine query heads, three key heads")
    first = float(side.weights[0])
    mix = " + ".join(f"{float(side.weights[i]):.3f} · v({tokens[i].strip()})" for i in range(at + 1))
    key = part.k[part.at(HEAD), cat]
    products = " + ".join(f"{float(a):.3f} · {float(b):.3f}" for a, b in zip(side.q[:2], key[:2], strict=True))
    powers = float(side.scaled[: at + 1].exp().sum())
    values = "\n\n".join(f"`v({tokens[i].strip()}) = {_vector(part.v[part.at(HEAD), i])}`" for i in range(at + 1))
    into = layer.into_o[at]
    likely = capture.base.next_token.topk(3)
    guesses = ", ".join(
        f"`{visible_text(text)}` ({float(p):.2f})"
        for text, p in zip(token_texts(lm.tokenizer, likely.indices.tolist()), likely.values.exp(), strict=True)
    )
    against = float(torch.nn.functional.cosine_similarity(side.residual_before, side.out, dim=0))
    _holds(against < 0, "what is added points against the residual stream")
    _holds(float(layer.residual_after[at].norm()) < float(side.residual_before.norm()), "the vector becomes shorter")
    words = f"""\
## 1. Words become numbers

The model reads pieces of words, called **tokens**. Here each word is one:

> {" · ".join(f"`{t.strip()}`" for t in tokens)}

Every token starts as a list of {hidden} numbers, a **vector**, looked up in a table that training has filled. The list is the same
wherever the word stands: at the start, `sat` knows nothing of any cat. {layers} layers then rewrite the vectors, one layer
after the other. The vector on its way through the layers is called the **residual stream**: no layer replaces it, each adds
something to it. A layer does two things: **attention**, in which tokens look at one another, and a
small network that works on each token alone. This page is about attention.

We stop at layer {LAYER} (counted from 0) and follow `{TOKEN}`. By now its vector is

`residual = {_vector(side.residual_before)}`

Its **length** is {float(side.residual_before.norm()):.2f}: the square root of the sum of the squares of its numbers. The square root of a number is the one that gives it when
multiplied by itself: that of 9 is 3. For an arrow on paper, 3 to the right and 4 up, this is the length measured with a ruler: 9 + 16 = 25, and
the root is 5. Here there are {hidden} directions instead of two. Before attention reads it, it is brought to a standard size (a *norm*), which gives

`x = {_vector(side.x)}`

of length {float(side.x.norm()):.2f}. This x is what enters attention.

## 2. Question, key, value

Three tables of weights turn each token's x into three vectors, which have fewer numbers because the work is shared out (below):

- **q**, the *query*: what this token looks for;
- **k**, the *key*: what it has to offer to those who look;
- **v**, the *value*: what it hands over when it is looked at.

Each is a *matrix product*, x times a table, and nothing more: every number of q is a sum of the {hidden} numbers of x, each multiplied by a
number of the table. The tables `q_proj`, `k_proj` and `v_proj` are what training has learned and what an adapter changes. This is done {heads} times
side by side, with different parts of the tables: {heads} **heads**, each looking for something of its own. To save memory, three query heads share
one key head and value head: head {HEAD} reads key head {life.key_head}. All vectors of a head have {width} numbers.

For `{TOKEN}` in head {HEAD}:

`q = {_vector(side.q_before)}`

So far the model would not know in which order the words stand. Therefore q and k are **turned**: two numbers at a time are taken as an arrow on
paper, which is turned by an angle that grows with the word's position (*rotary embedding*). Turning changes no length, {float(side.q_before.norm()):.3f} before and
{float(side.q.norm()):.3f} after, but two vectors now fit better or worse depending on how far apart their words are:

`q, turned = {_vector(side.q)}`

## 3. Everyone is asked

How well does a key fit the query? Multiply the turned q and the turned k number by number and add up: the **dot product** q·k. The key of `cat` is

`k(cat), turned = {_vector(key)}`

and so q·k is

`{products} + … = {float(side.raw[cat]):.3f}` ({width} products)

A large number is a good fit, a negative one a bad fit. Then four steps make shares of it:

1. **Scale.** Sums of {width} products are large, so all are multiplied by {life.scaling:.4g}, which is one over the square root of {width}.
2. **Mask.** The model writes from left to right, so a token may not look at later ones: their score becomes minus infinity.
3. **Power.** The number e, a fixed number like π, 2.718…, is raised to each score: e to the power 2 is 2.718 · 2.718, e to the power 0 is 1, and e to
   the power -1 is 1 divided by 2.718. The results are positive (or 0, where masked), a score that is larger by 1 becomes 2.718 times as large, and so
   large ones stand out.
4. **Divide** by the sum, so that the shares add up to 1. Steps 3 and 4 together are the **softmax**, and the shares are called **weights**.

For `{TOKEN}`, every key, with the model's own numbers; the weight of `cat` is {float(side.scaled[cat].exp()):.3f} divided by {powers:.3f}:

{_keys_table(life)}

{float(side.weights[cat]):.1%} of the attention of `{TOKEN}` goes to `cat`, and {first:.1%} to `The`. That holds for this head and this sentence: whether
the head finds who did something in other sentences too, one figure cannot show.

{_figure("row", f"Bars: where sat looks in layer {LAYER}, head {HEAD}")}

The same for all tokens at once, one row for each token that looks and one column for each that is looked at; the frame is what `{TOKEN}` gives
`cat`. The upper right half is empty because of the mask, and each row adds up to 1. `on` and `the` look at `cat` as well:

{_figure("head", f"Heat map of the softmax weights of layer {LAYER}, head {HEAD}")}

## 4. Values are mixed

Now the shares are used. The head's result for `{TOKEN}` is the sum of the values, each times its share:

{values}

`{mix}`

`= {_vector(side.mixed)}`

v(cat) has by far the largest share of it.

## 5. Back through o

The results of the {heads} heads are put beside one another, {heads} times {width} numbers, together {len(into)}. A last table, `o_proj`, turns them
into one vector of the size of x:

`out = {_vector(side.out)}`

It is **added** to the residual stream:

`{float(side.residual_before[0]):.3f} + {float(side.out[0]):.3f} = {float(layer.residual_after[at, 0]):.3f}` for the first number, and so on for the other {hidden - 1}.

That sum is the vector of `{TOKEN}` from here on. A part of it was computed from the vector of `cat`. The small network of this layer reads it and adds its own part;
then the next layer makes its x of it, and so on. The length
was {float(side.residual_before.norm()):.2f}, what was added has length {float(side.out.norm()):.2f}, and the new length is {float(layer.residual_after[at].norm()):.2f}. It became shorter although something was
added, because what was added points partly against what was there: many of its numbers have the other sign. Their cosine is {against:.2f}. The **cosine** of
two vectors is their dot product divided by both lengths: 1 when they point the same way, 0 at a right angle, -1 when they point opposite ways.

The whole way of `{TOKEN}` through this head in one picture; the numbers in the boxes are the lengths of the vectors. Open the picture by itself
and click another word: the picture moves to that word's numbers.

{_open_figure("flow", f"Diagram: x of {TOKEN} becomes q, meets the keys, the weights mix the values, o adds the result to the residual stream")}

This is all that attention does, in every layer and every head. After the last layer the vector of the last token, `mat`, is compared with every
token of the vocabulary, by a dot product again, and a softmax makes probabilities of the results. The most likely continuations: {guesses}.
"""
    return words, capture.difference


# --- the adapter -------------------------------------------------------------------------------------------


def choose_prompt(lm: PromptLoRA) -> tuple[str, LoRAWeights, AttentionCapture, int]:
    """The wording after which the adapted model gives ANIMAL the most probability as the first word of its answer.

    The number is how many wordings make another word the likeliest.
    """
    (first,) = lm.tokenizer(ANIMAL, add_special_tokens=False)["input_ids"]
    found: dict[str, tuple[LoRAWeights, AttentionCapture]] = {}
    for wording in WORDINGS:
        lora = lm.adapt(wording)
        found[wording] = lora, capture_attention(lm, TEXT, lora)

    likely = {w: c.adapted.next_token for w, (_, c) in found.items() if c.adapted is not None}
    best = max(WORDINGS, key=lambda wording: float(likely[wording][first]))
    _holds(int(likely[best].argmax()) == first, f"with one wording {ANIMAL!r} is the likeliest first word")
    _holds(int(found[best][1].base.next_token.argmax()) != first, f"the base does not start with {ANIMAL!r}")
    return best, *found[best], sum(int(words.argmax()) != first for words in likely.values())


def head_of_the_words(capture: AttentionCapture, at: int, words: range) -> tuple[int, int]:
    """The layer and head in which these tokens together gain most of the attention of token ``at``."""
    gains = {}
    for layer in capture.base.layers:
        assert capture.adapted is not None
        before, after = layer.softmax, capture.adapted[layer.layer].softmax
        assert before is not None
        assert after is not None
        gained = (after.weights - before.weights)[:, at, words.start : words.stop].sum(dim=-1)
        gains.update({(layer.layer, head): float(value) for head, value in zip(before.heads, gained, strict=True)})
    return max(gains, key=lambda place: gains[place])


def adapter_part(lm: PromptLoRA, figures: dict[str, str]) -> tuple[str, float, str]:
    """What an adapter changes at each step; the prompt comes last."""
    prompt, lora, capture, others = choose_prompt(lm)
    told = (
        f"with {others} of the other {len(WORDINGS) - 1} its first word is\nanother, since base and hypernetwork are small"
        if others
        else "with each of the others its first word is `" + ANIMAL + "` too"
    )
    _holds(lora.is_shared, "all adapters have the same A and B")
    adapted = capture.adapted
    assert adapted is not None
    at = find_token(capture.tokens, len(capture.tokens) - 1)
    start = find_token(capture.tokens, TEXT.split()[0])
    sentence = range(start, start + len(TEXT.split()))
    _holds("".join(capture.tokens[i] for i in sentence) == TEXT, "the sentence is one token a word")
    number, head = head_of_the_words(capture, at, sentence)
    life = token_life(capture, at, number, head)
    assert life.change is not None
    gained = float(life.change[sentence.start : sentence.stop].sum())
    _holds(gained > 0.3, "in one head the words of the sentence gain much")
    side = life.adapted
    assert side is not None
    fold = Fold.of(capture.tokens, template_tokens(lm, TEXT))
    rows = [fold.groups[place][0] for place in fold.single]
    figures["flow-adapter"] = flow_figure(
        [token_life(capture, i, number, head) for i in rows], fold, rows.index(at)
    )  # fmt: skip
    layers, table = change_map(capture.base, adapted, at)
    most_layer, most_head = most_changed(capture, at)
    most = float(table[layers.index(most_layer), most_head])
    names = [f"layer {n}" for n in layers]
    figures["change"] = heat_map(
        table, names, [str(h) for h in range(table.shape[1])], "Change of attention at the last token", across="head"
    )
    figures["steered"] = bars(
        life.base.weights.tolist(), [f"{i} {visible_text(t)}" for i, t in enumerate(life.tokens)],
        f"Where the last token looks, layer {number}, head {head}", other=side.weights.tolist(),
    )  # fmt: skip
    shares = ["| projection | length of base | length of what the adapter adds | its share |", "|---|---:|---:|---:|"]
    for role, (base, delta, share) in side.shares.items():
        shares.append(f"| {role} | {base:.3f} | {delta:.3f} | {share:.1%} |")
    ranks = next(iter(lora.values()))[0].shape
    inputs = ablate(lm, INPUTS, lora)
    for choice in ("v", "o"):
        _holds(float(inputs.attention[choice][0].max()) == 0.0, f"{choice} leaves the attention of layer 0 alone")
    figures["ablation"] = heat_map(inputs.by_layer(), names, inputs.choices, "Change of attention", cell=(44, 16))
    figures["ablation-output"] = heat_map(
        inputs.outputs_by_layer(), names, inputs.choices, "Change of what leaves o", cell=(44, 16)
    )
    ablated = ["| adapter on for | attention | what leaves o | next token |", "|---|---:|---:|---:|"]
    for i, choice in enumerate(inputs.choices):
        attention, output = float(inputs.by_layer()[:, i].mean()), float(inputs.outputs_by_layer()[:, i].mean())
        ablated.append(f"| {choice} | {attention:.3f} | {output:.3f} | {inputs.next_token[choice]:.2f} |")
    words = _next_words(lm, capture.base.next_token, adapted.next_token)
    prompts, groups = [p for p, _ in SPACE], [g for _, g in SPACE]
    space = adapter_space(lm.adapt(prompts), prompts, groups)
    figures["space"] = point_map(space.points, prompts, groups, "The space of adapters")
    lines = [f"| {i} | {prompt} | {group} |" for i, (prompt, group) in enumerate(SPACE)]
    listed = "\n".join(["| on the map | prompt | task |", "|---:|---|---|", *lines])
    text = f"""\
## 6. With an adapter

An adapter leaves every table as it is and adds to what comes out of it:

`output = x · table + x · A · C · B · {lora.scaling:.3g}`

A, C and B are tables too, but small ones: A makes {ranks[2]} numbers of the {ranks[1]} of x, C mixes these {ranks[2]}, and B makes an output of them, a narrow path
beside the wide one (together they are a *LoRA*, a low-rank adapter). Each of the {len(lora)} tables q, k, v and o of all layers has such a path. A and B
were learned once and are the same for every prompt. C is the prompt's own, and it is small, {ranks[2]} by {ranks[2]} numbers: the
*hypernetwork*, a second, small network, reads a prompt and writes the C of every path, in one go. From here on the numbers
depend on the hypernetwork that is shipped, and this part is written anew with each; the prompt is

> {prompt}

Of {len(WORDINGS)} wordings tried it is the one after which the adapted model is surest of `{ANIMAL}`; {told}. The input is the same sentence, now in the template of a conversation, since that is what the
adapter was trained for: marks such as `<|im_start|>` say who speaks. So there are {len(life.tokens)} tokens, and we follow the last one, a line end, from which the answer starts. The prompt itself is
nowhere among them.

What the adapter adds there, in layer {number} (the share is that of what is added, of both lengths together):

{chr(10).join(shares)}

A change of q or k moves **where** a token looks; a change of v moves **what** it is handed; a change of o moves **what becomes** of it.
Small changes add up, since each layer reads what the layers before have written. Of all heads, it is in head {head} of layer {number} that the words of the
sentence gain most of the attention of the last token, {gained:.3f} together; base and adapted:

{_figure("steered", "Bars: where the last token looks, base and adapted")}

The weights still add up to 1 ({float(life.base.weights.sum()):.3f} and {float(side.weights.sum()):.3f}): what one token gains, others lose.

{_changes(life)}

The same head drawn as before, base in grey and adapted in colour; the tokens that the template writes stand together:

{_open_figure("flow-adapter", "Diagram: the last token in the base and in the adapted model")}

All heads of all layers at once, for the weights of the last token and this one input: a cell is one head, and no mean of anything. The number is the *Jensen–Shannon distance* between the weights with and
without the adapter: 0 when they are equal, 1 when they have nothing in common. By this number, the head that the adapter changes most at this
token is head {most_head} of layer {most_layer}, with {most:.3f}. "Changes most" means the same on the command line and on the page of `promptlora ui`: both
open this head for this input.

{_figure("change", "Heat map of the change of attention, layers by heads")}

And the most likely first words of the answer:

{words}

## 7. Which of the four does it?

The adapter can be switched on for some of the tables alone. Means over {inputs.inputs} inputs and all layers: the change of attention is the distance
from above; the change of what leaves o is the length of the difference, divided by the length of what left o before; and the change of the next
token is the *Kullback–Leibler divergence* in nats: 0 when the same next words are expected as before, and the larger, the less the two
expectations agree.

{chr(10).join(ablated)}

In layer 0, v alone and o alone leave attention untouched, exactly: the shares are settled by q and k before v and o come in. From
layer 1 on they change it all the same, since what they did in layer 0 is part of x there. A cell of the first map is the mean over the
heads of a layer, the tokens and the {inputs.inputs} inputs; a cell of the second is a ratio of lengths over all tokens of an input, and the mean of it over the inputs. The maps show sizes of changes, not whether a change helps.

{_figure("ablation", "Heat map: change of attention, layers by projections")}

{_figure("ablation-output", "Heat map: change of what leaves o, layers by projections")}

## 8. The space of adapters

Two prompts that mean the same should give adapters that do the same. An adapter's update is a long list of numbers too, so two of them
can be compared by their cosine, after the mean of the {len(SPACE)} updates, what all of them have in common, is taken off. The map shows the two
directions in which the updates differ most, which keep {space.kept:.0%} of the spread: prompts that are near on it are alike in these two directions, and may differ in
others.

{_figure("space", "Map of the adapters of twelve prompts")}

{listed}

The mean cosine is {_or_none(space.within)} within a task and {_or_none(space.between)} between tasks; the nearest prompt is of the same task for
{0.0 if space.same_group is None else space.same_group:.0%} of the prompts. These are {len(SPACE)} prompts of {len(set(groups))} tasks, written for this page: the map shows that the adapters tell these tasks
apart, not that they do them well.
"""
    return text, capture.difference, prompt


def _or_none(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"


def _changes(life: TokenLife) -> str:
    gains, losses = life.changes(2)
    words = []
    for name, some in (("Most gained", gains), ("Most lost", losses)):
        listed = ", ".join(f"token {i} `{visible_text(life.tokens[i])}` ({c:+.3f})" for i, c in some) or "none"
        words.append(f"{name}: {listed}.")
    return " ".join(words)


def _next_words(lm: PromptLoRA, *sides: Tensor) -> str:
    lines = ["| base | adapted |", "|---|---|"]
    columns = []
    for side in sides:
        best = side.topk(3)
        texts = token_texts(lm.tokenizer, best.indices.tolist())
        columns.append([f"`{visible_text(t)}` {float(p):.3f}" for t, p in zip(texts, best.values.exp(), strict=True)])
    lines += [f"| {a} | {b} |" for a, b in zip(*columns, strict=True)]
    return "\n".join(lines).replace("`|`", "`\\|`")


# --- the page ----------------------------------------------------------------------------------------------

INTRODUCTION = """\
# How attention works, and what an adapter changes

<!-- Generated by `python scripts/attention_page.py`; do not edit. -->

A language model predicts the next word. To do so, each word must learn something from the words before it, and the part of the model in
which it does so is called attention. promptlora steers a model by changing attention alone, so this page walks through it once, slowly,
with a real model and a real sentence: SmolLM2-135M-Instruct reads **{text}**. No number here is made up or simplified; they are
the model's own, recomputed step by step and compared with what the model itself computed; they are rounded for print, so a last digit may seem off
by one. You need to know how to add and multiply.

The whole way in one line: a token's vector **x** becomes a query **q**, a key **k** and a value **v**; the query is compared with the keys of all tokens
so far, the comparisons become weights, the values are mixed by these weights, and the mixture goes back through **o** into the token's vector.
"""

ENDING = """\
## See it for yourself

Each number above can be had for any text, token, layer and head:

```bash
promptlora inspect --raw "{text}" --token {token} --layer {layer} --head {head}
promptlora inspect --prompt "{prompt}" "{text}" -o report.html  # base beside adapted
promptlora inspect --ablate --prompt "{prompt}" "{text}"        # which projection does what
promptlora inspect --space prompts.txt -o space.html  # the space of adapters; one prompt per line
promptlora ui --open                                  # all of it in the browser, with sliders
```

The page of `promptlora ui`, after a click on its first example: the answers, the first words that each model finds likely, and the head that the
adapter changes most at the last token.

![The page of promptlora ui: four answers to each input; first words; heat maps](figures/ui-desktop.png)

Or in Python:

```python
from promptlora import PromptLoRA
from promptlora.inspect import capture_attention

lm = PromptLoRA.from_pretrained()
lora = lm.adapt("{prompt}")
capture = capture_attention(lm, "{text}", lora, layers=[{layer}])
capture.adapted[{layer}].weights(head={head})  # softmax weights, [tokens, tokens]; every row sums to 1
capture.adapted[{layer}].projections["q"].share  # how much of each token's q is the adapter's
```

A capture recomputes attention in float64 from what the model worked with (q, k, v, mask and scale), whichever implementation
the model uses, and compares the weighted sum, the input of o and the output of o (and the weights, where the model returns them) with the
model's own. On this page the largest difference is {difference:.1e} of a tensor's largest value, which is rounding in float32. Where
it is more than rounding, the capture raises an error and shows nothing. Models of other families have more steps, which are captured too: norms of q and k
(Qwen3, OLMo 2), gates after the weighted sum (Qwen3-Next), caps on scores and windows (Gemma 2 and 3), a sink that takes attention away from
all tokens (gpt-oss). A Gated DeltaNet (three of four layers of Qwen3-Next) keeps a running state instead of a table of weights: it
has no softmax weights to show, and says so.
"""


def render(lm: PromptLoRA) -> tuple[str, dict[str, str]]:
    """The page, and its figures by name."""
    figures: dict[str, str] = {}
    base, difference = base_part(lm, figures)
    adapter, other, prompt = adapter_part(lm, figures)
    ending = ENDING.format(
        text=TEXT, token=TOKEN, layer=LAYER, head=HEAD, prompt=prompt, difference=max(difference, other)
    )
    return "\n".join([INTRODUCTION.format(text=TEXT), base, adapter, ending]), figures


def _alike(ours: str, theirs: str) -> bool:
    """The same text, with numbers that differ by no more than rounding on another machine."""
    if _NUMBER.sub("#", ours) != _NUMBER.sub("#", theirs):
        return False
    pairs: Sequence[tuple[str, str]] = list(zip(_NUMBER.findall(ours), _NUMBER.findall(theirs), strict=True))
    return all(abs(float(a) - float(b)) <= 0.02 + 0.01 * abs(float(b)) for a, b in pairs)


def main() -> int:
    """Write the page and its figures, or compare them."""
    parser = argparse.ArgumentParser(description="Write docs/attention.md from the real model.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the page is stale")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    lm = PromptLoRA.from_pretrained(device="cpu")
    page, figures = render(lm)
    files = {PAGE: page, **{FIGURES / f"attention-{name}.svg": drawn for name, drawn in figures.items()}}
    if check:
        stale = [f for f, text in files.items() if not f.is_file() or not _alike(text, f.read_text(encoding="utf-8"))]
        for file in stale:
            sys.stderr.write(f"{file.relative_to(ROOT)} is stale: run python scripts/attention_page.py\n")
        return 1 if stale else 0
    FIGURES.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        file.write_text(text, encoding="utf-8")
        sys.stdout.write(f"wrote {file.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
