"""The HTTP server: `serve.server.serve` runs it, `serve.app.build_app` is the application behind it.

FastAPI, uvicorn and prometheus_client are imported in this folder only; `pip install 'segship[serve]'` brings them.
"""
