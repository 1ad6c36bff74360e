"""The messages of a chat request: which text is the prompt, and what the base reads.

It knows the roles and content parts of OpenAI's API; nothing of tokens or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from promptlora.server.schema import Message

_SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class Conversation:
    """The messages of a request, ready for the base's chat template.

    Attributes:
        messages: ``{role, content}`` each; the developer's are the system's, which is the word that templates know.
    """

    messages: list[dict[str, str]]

    @property
    def system(self) -> str | None:
        """The text of all system messages, separated by blank lines; None where there is no text."""
        texts = [message["content"] for message in self.messages if message["role"] == "system"]
        return "\n\n".join(text for text in texts if text.strip()) or None

    def without_system(self) -> Conversation:
        """The same conversation without its system messages."""
        return Conversation([message for message in self.messages if message["role"] != "system"])


def read(messages: Sequence[Message]) -> Conversation:
    """The conversation of a request; the text parts of one message are joined by line breaks."""
    return Conversation(
        [{"role": "system" if m.role in _SYSTEM else m.role, "content": _text(m.content)} for m in messages]
    )


def _text(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(part.text for part in content)
    return str(content or "")
