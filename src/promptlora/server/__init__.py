"""The HTTP server: OpenAI's API, where a system message becomes an adapter, and endpoints for adapters.

FastAPI and uvicorn (the extra ``[serve]``) are imported by its modules, not here.
"""
