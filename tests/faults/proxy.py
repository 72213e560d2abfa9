"""An S3 server (moto) on the loopback, and a proxy before it that loses what it is told to lose."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
server.stop()
"""


class Moto:
    """moto in a process of its own; a context manager that gives itself."""

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        host, port = self.process.stdout.readline().split()
        self.address = (host, int(port))
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=30)

    def bucket(self, name):
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        connection.request("PUT", f"/{name}", headers={"Host": f"{self.address[0]}"})
        assert connection.getresponse().status == 200
        connection.close()


class Proxy:
    """Passes requests on. ``fault(number)`` gives None, "before", "after" or "lost".

    before : this request and all later ones never reach the store (the writer died before it)
    after : this one is carried out, its reply and all later requests are lost (it died after it)
    lost : the reply to this one is lost, all else works
    """

    def __init__(self, upstream):
        self.upstream = upstream
        self.fault = lambda number: None
        self.ignore_conditions = False
        self.count, self.dead = 0, False
        self.lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self):
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                proxy.serve(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))

    def reset(self, fault):
        self.count, self.dead, self.fault = 0, False, fault

    def serve(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self.lock:
            self.count += 1
            fault = "before" if self.dead else self.fault(self.count)
            self.dead = self.dead or fault in ("before", "after")
        reply = None if fault == "before" else self.forward(request, body)
        if fault is not None:
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        status, headers, data = reply
        request.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                request.send_header(name, value)
        length = dict((n.lower(), v) for n, v in headers).get("content-length")
        head = request.command == "HEAD" and length
        request.send_header("Content-Length", length if head else str(len(data)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)
            request.wfile.flush()

    def forward(self, request, body):
        connection = http.client.HTTPConnection(*self.upstream, timeout=30)
        headers = {
            name: value
            for name, value in request.headers.items()
            if not (self.ignore_conditions and name.lower() == "if-none-match")
        }
        try:
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
