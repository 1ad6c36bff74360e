"""A vLLM plugin: an adapter is written by a promptlora sidecar when a request first names it.

It imports nothing of promptlora, whose torch and transformers are other versions than vLLM's; it speaks HTTP to
``promptlora serve --adapters-only``.
"""

__version__ = "0.1.0"
