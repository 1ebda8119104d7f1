"""As much of Neutron as nova asks for when VMs have no network: every list is empty."""

from __future__ import annotations

import http.server
import json
import sys


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with the versions of the API, or with an empty list of whatever was asked for."""
        resource = self.path.partition("?")[0].rstrip("/").rpartition("/")[2].removesuffix(".json")
        content: dict[str, list[object]] = {resource.replace("-", "_"): []}
        if not resource:
            link = {"rel": "self", "href": f"http://{self.headers['Host']}/v2.0/"}
            content = {"versions": [{"id": "v2.0", "status": "CURRENT", "links": [link]}]}
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Handler).serve_forever()
