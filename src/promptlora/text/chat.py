"""Turns text and chats into token ids.

It knows tokenizers and chat templates; it knows nothing of models, LoRA or hypernetworks.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from promptlora.errors import PromptError, one_line

PLACES = ("user", "system")
SYSTEM_TURNS = ("empty", "default", "none")
_CUT = "\ufdd0"  # a Unicode noncharacter; the text before it and after it is encoded separately
_CONSONANTS = "bcdfghjklmnpqrstvwxz"


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    text: str | Sequence[dict[str, str]],
    prompt: str | None = None,
    *,
    place: str = "user",
    system_turn: str = "empty",
) -> str:
    """Render one user turn, or a whole conversation, with the base's chat template, up to the start of the answer.

    If the template has a system turn, it is rendered empty, so that no default system prompt is added to the adapter.
    If the template refuses a system turn or drops its text, the text is put before the first user turn. Without a
    template, the plain text is returned.

    Args:
        tokenizer: The base's tokenizer.
        text: The user's text, or messages ``{role, content}``.
        prompt: An instruction to put in the context, for the in-context control.
        place: Where the instruction goes: before the input in the ``user`` turn, or in the ``system`` turn (before the
            conversation's own system text).
        system_turn: What to render if there is no system text: ``empty``, a turn without text; ``default``, the
            template's default; ``none``, no system turn.

    Raises:
        PromptError: ``place`` or ``system_turn`` is unknown, the messages are invalid, or the template refuses the
            conversation or does not render it completely.
    """
    if place not in PLACES:
        raise PromptError(f"place={place!r}; expected one of {', '.join(PLACES)}")
    if system_turn not in SYSTEM_TURNS:
        raise PromptError(f"system_turn={system_turn!r}; expected one of {', '.join(SYSTEM_TURNS)}")
    if prompt is not None and not isinstance(prompt, str):
        raise PromptError(f"prompt {repr(prompt)[:80]}; expected a text")
    messages = [{**m, "content": as_text(tokenizer, m["content"])} for m in _messages(text)]
    prompt = None if prompt is None else as_text(tokenizer, prompt)
    system = [m["content"] for m in messages[:1] if m["role"] == "system" and m["content"]]
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    if prompt is not None and place == "system":
        system = [prompt, *system]
    elif prompt is not None:
        turns = _before_user(turns, prompt)
    spoken = "\n\n".join(system)
    if not tokenizer.chat_template:
        return "\n\n".join(part for part in (spoken, *(m["content"] for m in turns)) if part) + "\n"
    wanted = [*system, *(turn["content"] for turn in turns if turn["role"] == "user")]
    refused = "it leaves out a part of the system or user text"
    ways = [[{"role": "system", "content": spoken}, *turns], _before_user(turns, spoken) if spoken else turns]
    if not spoken and system_turn == "default":
        ways = [turns]
    for number, messages in enumerate(ways):
        try:
            rendered = _apply_template(tokenizer, messages)
            if not spoken and system_turn == "none" and number == 0:
                rendered = _without_system(tokenizer, rendered)
        except Exception as error:  # the template's own code can raise any error, such as TypeError or TemplateError
            refused = one_line(error)
            continue
        if _holds(rendered, wanted):
            return rendered
    raise PromptError(
        f"the chat template of the base refuses this conversation ({refused}); expected a template that writes every "
        "turn, and turns of user and assistant, one after the other"
    )


def as_text(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Escape special tokens in a user's text, so that ``<|im_end|>`` typed by a user does not end a turn.

    A mark is inserted after the first character of such a string. :func:`encode_chat` splits the text there, so the
    string is encoded as ordinary text. All other texts are returned unchanged.
    """
    special = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    text = text.replace(_CUT, "\ufffd")
    if not any(token in text for token in special):
        return text
    longest = sorted(filter(None, special), key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest)), lambda found: f"{found[0][0]}{_CUT}{found[0][1:]}", text)


def _holds(rendered: str, wanted: Sequence[str]) -> bool:
    """Whether a rendered chat contains every given text, repeated texts as often as given; outer whitespace is ignored.

    Assistant texts are not checked, because templates drop the reasoning of earlier turns.
    """
    parts = [text.strip() for text in wanted if text.strip()]
    return all(rendered.count(part) >= sum(other.count(part) for other in parts) for part in set(parts))


def _messages(text: str | Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """A text becomes one user turn; messages are checked and returned unchanged."""
    if isinstance(text, str):
        return [{"role": "user", "content": text}]
    try:
        messages = [dict(message) for message in text]
    except (TypeError, ValueError) as error:
        raise PromptError(f"input {repr(text)[:80]}; expected a text, or messages with role and content") from error
    for message in messages:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise PromptError(f"message {str(message)[:80]}; expected role and content, both text")
    if not any(message["role"] == "user" for message in messages):
        raise PromptError(f"{len(messages)} messages, none of the user; expected at least one of role 'user'")
    return messages


def _before_user(turns: list[dict[str, str]], prompt: str) -> list[dict[str, str]]:
    """The turns with a prompt inserted before the text of the first user turn."""
    first = next(i for i, turn in enumerate(turns) if turn["role"] == "user")
    written = {**turns[first], "content": f"{prompt}\n\n{turns[first]['content']}"}
    return [*turns[:first], written, *turns[first + 1 :]]


def _without_system(tokenizer: PreTrainedTokenizerBase, rendered: str) -> str:
    """A rendered chat without its empty system turn; unchanged if the template cannot render that turn alone."""
    try:
        alone = str(
            tokenizer.apply_chat_template(
                [{"role": "system", "content": ""}], tokenize=False, add_generation_prompt=False
            )
        )
    except Exception:
        return rendered
    return rendered.removeprefix(alone)


def _apply_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def encode_chat(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered chats; no special tokens are added, because the template already contains them.

    Raises:
        PromptError: The text is not valid Unicode.
    """
    if not rendered:
        return []
    for text in rendered:
        _check_unicode(text)
    pieces = [text.split(_CUT) for text in rendered]
    special = not tokenizer.chat_template
    ids: list[list[int]] = tokenizer([first for first, *_ in pieces], add_special_tokens=special, verbose=False)[
        "input_ids"
    ]
    for row, (_, *others) in zip(ids, pieces, strict=True):
        for other in others:
            row += tokenizer(other, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _check_unicode(text: str) -> None:
    """Refuse lone surrogates, which come from bytes that are not UTF-8; no tokenizer accepts them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        odd = text[max(0, error.start - 20) : error.start + 20]
        raise PromptError(f"text around {odd!r} is not Unicode (character {error.start}); expected UTF-8") from error


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, max_tokens: int) -> list[int]:
    """Token ids of a prompt for the encoder.

    Raises:
        PromptError: The prompt is empty, longer than ``max_tokens``, or not valid Unicode.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise PromptError(
            f"prompt {repr(prompt)[:80]} is empty; expected an instruction, a system prompt or a document"
        )
    _check_unicode(prompt)
    ids: list[int] = []
    for piece in as_text(tokenizer, prompt.strip()).split(_CUT):
        ids += tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise PromptError(
            f"prompt {repr(prompt)[:80]} has no token; expected an instruction, a system prompt or a document"
        )
    if len(ids) > max_tokens:
        raise PromptError(
            f"prompt of {len(ids)} tokens ({prompt.strip()[:40]!r}…); expected at most {max_tokens}, what this "
            "hypernetwork's encoder takes; shorten the prompt"
        )
    return ids


def gibberish(prompt: str, seed: int, max_tokens: int) -> str:
    """Random consonants in place of a prompt: a control without an instruction.

    The text has as many words as the prompt, but at most as many as fit in ``max_tokens`` if every letter is a token.
    """
    rng = random.Random(f"gibberish/{seed}")
    words = max(1, min(len(prompt.split()), max_tokens // 8))  # seven letters and a space
    return " ".join("".join(rng.choices(_CONSONANTS, k=rng.randint(2, 7))) for _ in range(words))
