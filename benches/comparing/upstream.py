"""What proxies ask: an upstream that serves from the page cache."""

from comparing.running import HOST, Nginx, free_port, get

# What has to reach the upstream. Of a client on loopback, Envoy names this machine's own address instead: any will do.
FORWARDED = {"x-forwarded-for": r"\S+", "x-forwarded-proto": "http", "x-forwarded-host": "bench.test"}


class Upstream(Nginx):
    """Serves from the page cache; `/echo` says which fields arrived and how often the connection was used."""

    name = "upstream"

    def __enter__(self):
        for name, size in [("1k", 1 << 10), ("1m", 1 << 20)]:
            (self.folder / name).write_bytes(b"x" * size)
        # Two addresses, for two versions.
        self.ports = [free_port(), free_port()]
        listens = "".join(f"listen {HOST}:{port} backlog=4096; " for port in self.ports)
        said = "".join(f'"{name}": "$http_{name.replace("-", "_")}", ' for name in FORWARDED)
        self.start_nginx(f"""
            open_file_cache max=16 inactive=1h;
            server {{
                {listens} root {self.folder}; default_type application/octet-stream;
                location = /echo {{ return 200 '{{{said}"uses": $connection_requests}}'; }}
            }}""")
        self.wait_until("answer", lambda: get(self.ports[0], "/1k")[0] == 200)
        return self


