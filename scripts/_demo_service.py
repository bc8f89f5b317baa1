"""One small HTTP service of the demo: serves, registers itself, renews its lease, leaves in good order.

    python _demo_service.py NAME ID TTL_S NODES

It is what a service of yours would look like: the standard library's HTTP
server, and five calls of the SDK.
"""

import http.server
import signal
import sys
import threading
from typing import Any

from rollcall.cluster import Client
from rollcall.replication.errors import NotFound, RollcallError


class Handler(http.server.BaseHTTPRequestHandler):
    id = ""

    def do_GET(self) -> None:
        body = f"{self.id} at your service\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    name, id, ttl_s, nodes = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]
    leaving = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: leaving.set())
    Handler.id = id
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        with Client(nodes) as client:
            port = server.server_address[1]
            made = client.register(name, id=id, address="127.0.0.1", port=port, ttl_s=ttl_s)
            pause_s = ttl_s / 3
            while not leaving.wait(pause_s):
                try:
                    pause_s = (client.heartbeat(name, id).next_heartbeat_ms or ttl_s * 333) / 1000
                except NotFound:
                    made = client.register(name, id=id, address="127.0.0.1", port=port, ttl_s=ttl_s)
                except RollcallError as error:
                    print(f"{id}: heartbeat failed: {error.message}", file=sys.stderr)
                    pause_s = ttl_s / 10
            client.deregister(name, id, registration=made.reg_index)
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


if __name__ == "__main__":
    main()
