"""A web server on the loopback interface that counts what it is asked for."""

import contextlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        path = self.server.folder / self.path.lstrip("/").split("?")[0]
        if status := self.server.trouble(self.path, self.headers.get("Range", "")):
            return self.send_error(status)
        if not path.is_file():
            return self.send_error(404)
        asked = self.headers.get("Range", "") if self.server.ranges else ""
        data, part = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        start, stop = (int(part[1]), int(part[2] or len(data) - 1) + 1) if part else (0, len(data))
        body = data[start:stop]
        self.send_response(206 if part else 200)
        if self.server.sizes:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hash(data)}"')
        if part:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        return None

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls


@contextlib.contextmanager
def serve(folder, *, ranges=True, sizes=True, trouble=lambda *_: None):
    """(address, paths asked for so far) of a server of `folder` with ETags; it knows ranges and tells sizes, or not.

    `trouble(path, range)` is the status of an answer that is an error.
    """
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.folder, server.asked, server.trouble = folder, [], trouble
        server.ranges, server.sizes = ranges, sizes
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", server.asked
        finally:
            server.shutdown()
