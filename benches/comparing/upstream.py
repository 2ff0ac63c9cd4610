"""What proxies ask: an upstream that serves from the page cache, many of them, and one that keeps requests waiting."""

import os
import selectors
import signal
import socket

from comparing.running import FORK, HOST, Nginx, Unusable, free_port, get

FIELDS = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id", "via"]
"""Those that a proxy adds to a request."""

SAID = {**{name: f'"$http_{name.replace("-", "_")}"' for name in FIELDS},
        "address": '"$server_addr"', "port": "$server_port", "uses": "$connection_requests"}
ECHO = "location = /echo { return 200 '{" + ", ".join(f'"{name}": {value}' for name, value in SAID.items()) + "}'; }"
"""Says which of those arrived, where, and how often the connection was used."""

ENDPOINTS = 10
"""The most that a version has, except in the scenario with many services."""

# Addresses for many endpoints: so many of loopback's, each with the same ports.
ADDRESSES = [f"127.0.1.{last}" for last in range(1, 21)]


class Upstream(Nginx):
    """Serves from the page cache."""

    name = "upstream"

    def __init__(self, folder, cores, workers=1):
        super().__init__(folder, cores)
        self.workers = workers

    def __enter__(self):
        for name, size in [("1k", 1 << 10), ("1m", 1 << 20)]:
            (self.folder / name).write_bytes(b"x" * size)
        self.ports = [free_port() for _ in range(2 * ENDPOINTS)]
        shared = " reuseport" if self.workers > 1 else ""
        listens = "".join(f"listen {HOST}:{port} backlog=4096{shared}; " for port in self.ports)
        self.start_nginx(f"""
            open_file_cache max=16 inactive=1h;
            server {{
                {listens} root {self.folder}; default_type application/octet-stream;
                {ECHO}
            }}""", self.workers)
        self.wait_until("answer", lambda: get(self.ports[0], "/1k")[0] == 200)
        return self

    def of(self, version, endpoints=1):
        """The ports of a version: 0 is stable, 1 the canary."""
        return self.ports[version * ENDPOINTS:][:endpoints]


class ManyEndpoints(Nginx):
    """So many endpoints, each an address of its own, that answer everything but `/echo` with 1 KiB."""

    name = "endpoints"

    def __init__(self, folder, count, cores=None):
        super().__init__(folder, cores)
        ports = free_ports(-(-count // len(ADDRESSES)))
        self.addresses = [f"{address}:{port}" for port in ports for address in ADDRESSES]

    def __enter__(self):
        (self.folder / "1k").write_bytes(b"x" * 1024)
        listens = "\n".join(f"listen {address}{' backlog=4096' if at == 0 else ''};"
                            for at, address in enumerate(self.addresses))
        self.start_nginx(f"""
            open_file_cache max=16 inactive=1h;
            server {{
                {listens}
                root {self.folder}; default_type application/octet-stream;
                {ECHO}
                location / {{ try_files /1k =404; }}
            }}""")
        host, port = self.addresses[-1].split(":")
        self.wait_until("answer", lambda: get(int(port), "/echo", host)[0] == 200)
        return self


def free_ports(count):
    """So many ports in a row that nothing uses, below those that the system gives to clients."""
    for first in range(10_000, 32_000 - count, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((ADDRESSES[0], port))
            return list(range(first, first + count))
        except OSError:
            continue
    raise Unusable(f"no {count} free ports in a row")


# ---- Requests that wait ------------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n"
HALF = b"x" * 512


class Holder:
    """Answers `/1k` at once; keeps `/held` waiting, and sends the first half of all those answers when it is told to."""

    def __init__(self, cores):
        self.cores = cores

    def __enter__(self):
        self.listeners = [socket.create_server((HOST, 0), backlog=4096) for _ in range(2)]
        self.ports = [listener.getsockname()[1] for listener in self.listeners]
        self.pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=self.serve, args=(theirs,), daemon=True)
        self.process.start()
        for listener in self.listeners:
            listener.close()
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()

    def of(self, version, _endpoints=1):
        return [self.ports[version]]

    def held(self):
        """How many requests wait."""
        return self.told("held")

    def send_half(self):
        """To all that wait; afterwards none does."""
        self.told("half")

    def told(self, what):
        self.pipe.send(what)
        if not self.pipe.poll(60):
            raise Unusable("the upstream that keeps requests waiting does not answer")
        return self.pipe.recv()

    def serve(self, pipe):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.sched_setaffinity(0, self.cores)
        waiting, heads = [], {}
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            for listener in self.listeners:
                selector.register(listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is pipe:
                        if pipe.recv() == "half":
                            for client in waiting:
                                client.sendall(HEAD + HALF)
                            waiting = []
                        pipe.send(len(waiting))
                    elif key.fileobj in self.listeners:
                        client, _ = key.fileobj.accept()
                        heads[client] = b""
                        selector.register(client, selectors.EVENT_READ)
                    else:
                        self.read(key.fileobj, selector, heads, waiting)

    @staticmethod
    def read(client, selector, heads, waiting):
        try:
            piece = client.recv(1 << 16)
        except OSError:
            piece = b""
        if not piece:
            selector.unregister(client)
            del heads[client]
            client.close()
            if client in waiting:
                waiting.remove(client)
            return
        heads[client] += piece
        if not heads[client].endswith(b"\r\n\r\n"):
            return
        if heads[client].startswith(b"GET /held "):
            waiting.append(client)
        else:
            client.sendall(HEAD + 2 * HALF)
        heads[client] = b""
