"""Requests with an adapter each, run as one mixed batch; and the adapters of prompts, in memory and on disk."""

# ruff: noqa: E402 (without the extra, what follows cannot be imported)
from promptlora.extras import need

need("serve", "cachetools", "psutil")

from promptlora.engine.cache import AdapterCache as AdapterCache
from promptlora.engine.engine import Engine as Engine
from promptlora.engine.requests import EngineError as EngineError
from promptlora.engine.requests import Piece as Piece
from promptlora.engine.requests import QueueFull as QueueFull
from promptlora.engine.requests import Sampling as Sampling
from promptlora.engine.requests import Ticket as Ticket
from promptlora.engine.requests import TokenLogprob as TokenLogprob
from promptlora.engine.stats import EngineStats as EngineStats
from promptlora.engine.storage import AdapterEntry as AdapterEntry
from promptlora.engine.writer import AdapterWriter as AdapterWriter
