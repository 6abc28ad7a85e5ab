"""yaml-language-server, which checks YAML files in editors, driven over its protocol (LSP)."""

import json
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("yaml-language-server")
_SETTINGS = {"yaml": {"validate": True, "schemaStore": {"enable": False}}}


class _Server:
    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process

    def send(self, **message: Any) -> None:
        content = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(content), content))
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Returns the next message; answers a question of the server first."""
        headers = {}
        while line := self._process.stdout.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name] = value
        assert headers, "yaml-language-server ended, or did not answer within two minutes"
        message = json.loads(self._process.stdout.read(int(headers["Content-Length"])))
        if "method" in message and "id" in message:
            self.send(id=message["id"], result=None)
        return message


def problems_in_editor(folder: Path) -> dict[str, list[str]]:
    """Returns the problems that an editor marks in each *.yaml of a folder, as `line: message`.

    The first line of each file names its JSON Schema.
    """
    process = subprocess.Popen(
        [PROGRAM, "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder
    )
    timer = threading.Timer(120, process.kill)
    timer.start()
    try:
        return _problems(_Server(process), sorted(folder.glob("*.yaml")))
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


def _problems(server: _Server, paths: list[Path]) -> dict[str, list[str]]:
    names = {path.as_uri(): path.name for path in paths}
    capabilities = {"processId": None, "rootUri": None, "capabilities": {}}
    server.send(id=1, method="initialize", params=capabilities)
    while server.receive().get("id") != 1:
        pass
    server.send(method="initialized", params={})
    server.send(method="workspace/didChangeConfiguration", params={"settings": _SETTINGS})
    for path in paths:
        document = {"languageId": "yaml", "version": 1, "text": path.read_text()}
        document["uri"] = path.as_uri()
        server.send(method="textDocument/didOpen", params={"textDocument": document})
    problems: dict[str, list[str]] = {}
    while len(problems) < len(paths):
        message = server.receive()
        if message.get("method") == "textDocument/publishDiagnostics":
            name = names[message["params"]["uri"]]
            problems[name] = [
                f"{problem['range']['start']['line'] + 1}: {problem['message']}"
                for problem in message["params"]["diagnostics"]
            ]
    return problems
