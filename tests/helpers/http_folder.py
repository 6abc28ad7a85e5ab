"""A folder behind a real HTTP server that can be told to fail."""

import contextlib
import functools
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar


class FaultyServer(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; `faults` lists for a file name how its next requests fail."""

    faults: ClassVar[dict[str, list[str]]] = {}
    requests: ClassVar[list[str]] = []

    def do_GET(self):
        name = self.path.rsplit("/")[-1]
        self.requests.append(name)
        left = self.faults.get(name, [])
        fault = left.pop(0) if left else None
        if fault == "404":
            self.send_error(404)
        elif fault == "500":
            self.send_error(500)
        elif fault in ("cut", "stall", "hang"):
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if fault != "cut":
                time.sleep(3 if fault == "stall" else 60)
            self.close_connection = True
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(folder: Path, port: int = 0) -> Iterator[str]:
    """Serves a folder, without faults at first, at any free port by default; gives its URL."""
    FaultyServer.faults, FaultyServer.requests = {}, []
    handler = functools.partial(FaultyServer, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        serve_forever = functools.partial(server.serve_forever, poll_interval=0.01)
        threading.Thread(target=serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
