"""What a request costs Serin with 1,000 services of 10 endpoints each, beside one service with one endpoint; and HAProxy."""

import json
from contextlib import ExitStack
from functools import partial

from comparing.equal import adds_fields
from comparing.load import rotating, wrk
from comparing.measuring import Target, measure, result
from comparing.peers import HaProxy, Serin, Setup
from comparing.running import HOST, Unusable, free_port, get
from comparing.upstream import ENDPOINTS, ManyEndpoints

SERVICES = 1000
ONE = "1 × 1"
MANY = f"{SERVICES} × {ENDPOINTS}"
HAPROXY_ONE = f"haproxy, {ONE}"
HAPROXY_MANY = f"haproxy, {MANY}, all are asked"
PARTS = 2
"""Upstreams that share the endpoints: each has a file open for each of its own, and one for each connection."""


class OfMany:
    """A proxy alone, with so many services `svc-0000.test` and so on; a single one takes every host."""

    def __init__(self, folder, cores, addresses, services, setup):
        folder = folder / f"{self.name}-{services}"
        folder.mkdir()
        super().__init__(folder, cores, None, None, setup)
        self.addresses, self.services = addresses, services

    def each(self):
        """Each service's name and its endpoints' addresses."""
        count = len(self.addresses) // self.services
        return [(f"svc-{number:04}", self.addresses[number * count:][:count]) for number in range(self.services)]


class Instance(OfMany, Serin):
    def run(self):
        binary = self.built()
        self.admin = free_port()
        lines = [f"listeners: [{{address: '{HOST}:{self.h1}'}}]", f"admin: {{address: '{HOST}:{self.admin}'}}", "services:"]
        for number, (name, addresses) in enumerate(self.each()):
            # The first one also by the address, so that it can be asked whether it is there.
            match = f"  match: [{{host: {name}.test}}{f', {{host: {HOST}}}' if number == 0 else ''}]"
            own = ", ".join(f"'http://{address}'" for address in addresses)
            lines += [f"- name: {name}", *([match] if self.services > 1 else []),
                      f"  stable: {{version: v1, endpoints: [{own}]}}"]
        config = self.folder / "serin.yaml"
        config.write_text("\n".join(lines) + "\n")
        self.start(binary, "serve", "--config", config, "--workers", 1)

    def wait_for_split(self):
        self.wait_until("readiness", lambda: get(self.admin, "/readyz")[0] == 200, 60)


class HaProxyInstance(OfMany, HaProxy):
    """Each service is a backend that is found in a map by the host."""

    def run(self):
        each = self.each()
        first, hosts = each[0][0], self.folder / "hosts"
        hosts.write_text("".join(f"{name}.test {name}\n" for name, _ in each))
        chosen = f"use_backend %[req.hdr(Host),map_str({hosts},{first})]" if self.services > 1 else ""
        backends = "".join(f"""
backend {name}
    balance random(2)
""" + "".join(f"    server e{place} {address} pool-purge-delay 60s\n" for place, address in enumerate(addresses))
            for name, addresses in each)
        self.start_haproxy(f"""
    {self.fields("http")}
    {chosen}
    default_backend {first}
{backends}""")

    def wait_for_split(self):
        pass


class Services:
    """Serin beside itself; one service of the many is asked, and then all of them in turn. HAProxy, where it is among the peers,
    is asked all of them as well."""

    about = f"HTTP/1.1, 1 KiB answers: Serin with {SERVICES} services of {ENDPOINTS} endpoints beside one of one"
    BEFORE = 2
    """Seconds of load before each round, so that every endpoint has its connection: it is closed when it was idle for four."""

    def run(self, bench, name):
        place = bench.place()
        scripts = {hosts: place / f"{hosts}.lua" for hosts in (1, SERVICES)}
        for hosts, script in scripts.items():
            script.write_text(rotating(hosts, 10 * SERVICES))
        with ExitStack() as ending:
            upstreams = [ending.enter_context(ManyEndpoints(bench.place(), SERVICES * ENDPOINTS // PARTS, bench.load_cores))
                         for _ in range(PARTS)]
            addresses = [address for upstream in upstreams for address in upstream.addresses]
            setup = bench.asked(Setup())
            instance = lambda kind, own, services: ending.enter_context(kind(place, bench.proxy_cores, own, services, setup))
            both = lambda kind: (instance(kind, addresses[:1], 1),
                                 instance(kind, addresses[:SERVICES * ENDPOINTS], SERVICES))
            one, many = both(Instance)
            check(many)
            ask = lambda proxy, hosts: partial(wrk, proxy, cores=bench.load_cores, script=scripts[hosts])
            targets = [Target(f"{MANY}, one is asked", many, ask(many, 1), self.BEFORE),
                       Target(f"{MANY}, all are asked", many, ask(many, SERVICES), self.BEFORE),
                       Target(f"{ONE}", one, ask(one, SERVICES), self.BEFORE)]
            if HaProxy.name in bench.names:
                one, many = both(HaProxyInstance)
                check(many)
                targets += [Target(HAPROXY_MANY, many, ask(many, SERVICES), self.BEFORE),
                            Target(HAPROXY_ONE, one, ask(one, SERVICES), self.BEFORE)]
            rounds = measure(bench, name, self.about, targets)
        found = result(name, self.about, rounds, base=ONE, of=ONE, notes=[
            "When all are asked in turn, 10,000 connections are kept, of which each is used every half second: neither they nor "
            "what belongs to them is in the processor's caches when they are needed."])
        cpu = lambda name, of: [a.cpu_us / b.cpu_us for a, b in zip(rounds[name], rounds[of])]
        one_asked, all_asked = (target.name for target in targets[:2])
        found.ratios = {"CPU per request": {f"one asked, itself at {ONE}": cpu(one_asked, ONE),
                                            f"all asked, itself at {ONE}": cpu(all_asked, ONE)}}
        if HAPROXY_MANY in rounds:
            found.ratios["CPU per request, all asked"] = {HaProxy.name: cpu(all_asked, HAPROXY_MANY)}
            growth = zip(cpu(all_asked, ONE), cpu(HAPROXY_MANY, HAPROXY_ONE))
            found.ratios[f"the same, as a multiple of itself at {ONE}"] = {HaProxy.name: [a / b for a, b in growth]}
        return found


def check(many):
    """Services far apart are told from each other, and requests get their fields."""
    for number in (0, SERVICES // 2, SERVICES - 1):
        host = f"svc-{number:04}.test"
        said = json.loads(get(many.h1, "/echo", headers={"Host": host})[1])
        adds_fields(many, said, "http", host)
        who = f"{said['address']}:{said['port']}"
        if who not in many.addresses[number * ENDPOINTS:][:ENDPOINTS]:
            raise Unusable(f"{many.name}: service {number} was answered by {who}")
