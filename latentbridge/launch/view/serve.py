"""A launch's page over HTTP, for a browser on this machine or a tunnel to it.

A login node has other users, and they reach its ports: the address holds a secret.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from latentbridge.errors import LatentbridgeError

# drawing takes seconds of the login node
REFRESH_S = 60


@contextmanager
def serving(launch_folder: Path, port: int) -> Iterator[str]:
    """The address while the page is served; port 0: one that is free."""
    secret = secrets.token_urlsafe(16)
    handler = partial(_Handler, f"/{secret}/", directory=str(launch_folder))
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/{secret}/"
        finally:
            server.shutdown()
            thread.join()


class _Handler(SimpleHTTPRequestHandler):
    # one drawing at a time, whoever asks
    _drawing = threading.Lock()

    def __init__(self, prefix: str, *args: Any, directory: str) -> None:
        self._prefix = prefix
        super().__init__(*args, directory=directory)

    def do_HEAD(self) -> None:
        """Nobody asks for it; without the secret nothing is told."""
        self.send_error(405)

    def do_GET(self) -> None:
        """The page as the launch is now, or one of its files."""
        start, self.path = self.path[: len(self._prefix)], "/" + self.path[len(self._prefix) :]
        if not hmac.compare_digest(start.encode(), self._prefix.encode()):
            self.send_error(404)
            return
        if self.path != "/":
            super().do_GET()
            return
        from latentbridge.audit.page import page

        folder = Path(self.directory)
        try:
            with self._drawing:
                body = page(folder, relative_to=folder, refresh_s=REFRESH_S).encode()
        except LatentbridgeError as error:
            self.send_error(503, explain=str(error))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal shows the launch."""
