# SPDX-License-Identifier: Apache-2.0
"""A hub on this machine: the routes by which a folder becomes a repository."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHub:
    """What was made and uploaded, and what is to be refused.

    Attributes:
        address: the endpoint.
        files: content of what was committed, by repository and name.
        refused: routes to refuse: name to status and message.
        calls: routes in the order of their calls, with the token that came.
    """

    def __init__(self):
        self.repositories, self.files, self.refused, self.calls = set(), {}, {}, []
        self.address = ""

    def answer(self, path, body, token):
        """Status and content of an answer."""
        route = path.split("?")[0].strip("/").split("/")
        kind = route[-1] if route[-1] in ("create", "validate-yaml") else route[-2]
        self.calls.append((kind, token))
        if kind in self.refused:
            status, message = self.refused[kind]
            return status, {"error": message}
        if kind == "create":
            given = json.loads(body)
            name = f"{given['organization'] or 'me'}/{given['name']}"
            address = {"url": f"{self.address}/{name}"}
            if name in self.repositories:
                return 409, {**address, "error": "You already created this model repo"}
            self.repositories.add(name)
            return 200, address
        if kind == "validate-yaml":
            return 200, {"errors": [], "warnings": []}
        name = "/".join(route[2:4])
        if kind == "preupload":
            files = json.loads(body)["files"]
            of_each = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {"files": [{"path": each["path"], **of_each} for each in files]}
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.files[name, line["value"]["path"]] = content
        commit = {"commitUrl": f"{self.address}/{name}/commit/0", "commitOid": "0" * 40}
        return 200, {**commit, "hookOutput": ""}


@contextmanager
def running():
    """A hub that answers while the context lasts."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.reply(*hub.answer(self.path, body, self.headers.get("Authorization")))

        def do_GET(self):
            hub.calls.append(("get", self.path))
            self.reply(404, {"error": "not found"})

        do_HEAD = do_GET  # noqa: N815  the library's names

        def reply(self, status, content):
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args):
            """Nothing on the screen."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
