"""Exports a base's tokenizer with a chat template that renders the same text as ``render_chat``, for other programs.

A base's own template may render a default system turn where ``render_chat`` renders an empty one. Other programs would
then use an adapter with another chat format than promptlora does. The exported template is the base's template with a
few lines of Jinja before it. It is compared with ``render_chat`` on several conversations before it is written.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from promptlora.text.chat import encode_chat, render_chat

TEMPLATE_FILE = "chat_template.jinja"
_CONFIG_FILE = "tokenizer_config.json"
_HERE_ONLY = ("is_local", "local_files_only")  # how this process loaded the tokenizer

# Puts the user's prompt before the first user turn, as render_chat does.
_WITH_PROMPT = (
    "{% set ours = namespace(turns=[], placed=false) %}"
    "{% for message in messages %}{% if message['role'] == 'user' and not ours.placed %}"
    "{% set ours.turns = ours.turns + [{'role': 'user', 'content': PROMPT + '\\n\\n' + message['content']}] %}"
    "{% set ours.placed = true %}"
    "{% else %}{% set ours.turns = ours.turns + [message] %}{% endif %}{% endfor %}"
    "{% set messages = ours.turns %}"
)
_EMPTY_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}"
    "{% set messages = [{'role': 'system', 'content': ''}] + messages %}{% endif %}"
)
# For templates that refuse a system turn or drop its text: puts the text before the first user turn.
_SYSTEM_IN_USER = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set spoken = namespace(turns=[], left=messages[0]['content']) %}"
    "{% for message in messages[1:] %}{% if message['role'] == 'user' and spoken.left %}"
    "{% set spoken.turns = spoken.turns + [{'role': 'user', 'content': spoken.left + '\\n\\n' + message['content']}] %}"
    "{% set spoken.left = '' %}"
    "{% else %}{% set spoken.turns = spoken.turns + [message] %}{% endif %}{% endfor %}"
    "{% set messages = spoken.turns %}{% endif %}"
)
# The template for tokenizers that have none.
_PLAIN = (
    "{{ START }}{% set texts = namespace(all=[]) %}"
    "{% for message in messages %}{% if message['content'] %}"
    "{% set texts.all = texts.all + [message['content']] %}{% endif %}{% endfor %}"
    "{{ texts.all | join('\\n\\n') }}{{ '\\n' }}"
)

_Chat = list[dict[str, str]]


def _chat(*turns: tuple[str, str]) -> _Chat:
    return [{"role": role, "content": content} for role, content in turns]


_ONE_TURN = _chat(("user", "{{ x }} <b> 'quoted'"))
_PROBES = (
    _ONE_TURN,
    _chat(("user", "two\n\nlines\n")),
    _chat(("user", "first"), ("assistant", "answer"), ("user", "second")),
    _chat(("system", "Be short."), ("user", "first"), ("assistant", "answer"), ("user", "second")),
)


def _literal(text: str) -> str:
    """A text as a Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def _candidates(tokenizer: PreTrainedTokenizerBase, prompt: str | None) -> list[str]:
    """Templates that may render the same text as ``render_chat``, the simplest first."""
    first = "" if prompt is None else _WITH_PROMPT.replace("PROMPT", _literal(prompt))
    own = tokenizer.chat_template
    if isinstance(own, dict):  # named templates
        own = own.get("default")
    if not own:
        start = _literal(str(tokenizer.bos_token or ""))
        return [first + _PLAIN.replace("START", text) for text in ('""', start)]
    pieces = product((_EMPTY_SYSTEM, ""), ("", _SYSTEM_IN_USER))
    return [f"{first}{fold}{empty}{own}" for empty, fold in pieces]


def export_template(tokenizer: PreTrainedTokenizerBase, prompt: str | None = None) -> tuple[str, bool]:
    """A chat template with which ``apply_chat_template`` gives the same token ids as ``PromptLoRA``.

    Args:
        tokenizer: The base's tokenizer.
        prompt: A prompt that the template puts before the first user turn.

    Returns:
        The candidate template that agrees with ``render_chat`` on the most test conversations, and whether it agrees on
        a single user turn.
    """

    def ours(chat: _Chat) -> list[int] | None:
        try:
            return encode_chat(tokenizer, [render_chat(tokenizer, chat, prompt)])[0]
        except Exception:  # the base's template refuses this conversation, so it is not compared
            return None

    def theirs(chat: _Chat, template: str) -> list[int] | None:
        try:
            found: Any = tokenizer.apply_chat_template(
                chat, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception:
            return None
        return [int(i) for i in found]

    wanted = [ours(chat) for chat in _PROBES]
    best, most, single = "", -1, False
    for template in _candidates(tokenizer, prompt):
        same = [ids is None or ids == theirs(chat, template) for chat, ids in zip(_PROBES, wanted, strict=True)]
        score = sum(same) + len(same) * same[0]
        if score > most:
            best, most, single = template, score, same[0]
    return best, single


class ChatExport:
    """Writes a tokenizer and its chat template into the folder of an adapter.

    Args:
        tokenizer: The base's tokenizer; it is not changed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def write(self, folder: Path, prompt: str | None = None) -> tuple[str, bool]:
        """Write the files of the tokenizer with the template of :func:`export_template`.

        Args:
            folder: An existing folder.
            prompt: A prompt that the template puts before the first user turn.

        Returns:
            The rendered chat of the input ``INPUT``, and whether the written template renders it identically.
        """
        template, exact = export_template(self.tokenizer, prompt)
        self.tokenizer.save_pretrained(folder)
        (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
        config = folder / _CONFIG_FILE
        values = json.loads(config.read_text(encoding="utf-8"))
        for name in (*_HERE_ONLY, "chat_template"):  # a template from an older tokenizer would take precedence
            values.pop(name, None)
        config.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return render_chat(self.tokenizer, "INPUT", prompt), exact
