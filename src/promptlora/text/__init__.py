"""Converts text to token ids, and prompts to their states in the frozen base and in a frozen text embedder."""

from promptlora.text.base_states import decoder_layers as decoder_layers
from promptlora.text.base_states import prompt_states as prompt_states
from promptlora.text.chat import PLACES as PLACES
from promptlora.text.chat import as_text as as_text
from promptlora.text.chat import encode_chat as encode_chat
from promptlora.text.chat import encode_prompt as encode_prompt
from promptlora.text.chat import gibberish as gibberish
from promptlora.text.chat import render_chat as render_chat
from promptlora.text.embedder import EMBEDDER as EMBEDDER
from promptlora.text.embedder import TextEmbedder as TextEmbedder
from promptlora.text.examples import with_examples as with_examples
from promptlora.text.export import ChatExport as ChatExport
from promptlora.text.given import example_list as example_list
from promptlora.text.given import example_lists as example_lists
from promptlora.text.given import prompt_list as prompt_list
from promptlora.text.padding import pad_rows as pad_rows
from promptlora.text.states import PromptStates as PromptStates
