"""Start the page: `python -m pcbridge.app.web CHECKPOINT [--host HOST] [--port PORT]`."""

from jsonargparse import auto_cli

from .server import serve

if __name__ == "__main__":
    auto_cli(serve)
