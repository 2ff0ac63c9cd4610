"""CPU per request, requests/s and times under a load as fast as answers come, in interleaved rounds."""

from dataclasses import dataclass
from functools import partial
from typing import Callable

from comparing.bench import say
from comparing.load import h2load, rotating, wrk, wrk_post
from comparing.peers import Setup
from comparing.saying import Result, rounds_of, spread, table
from comparing.upstream import Upstream


@dataclass
class Target:
    """One row of a table: a proxy, and how it is asked for so many seconds."""

    name: str
    proxy: object
    ask: Callable
    before: int = 0
    """Seconds that it is asked before each round, where connections would be closed since the last one."""


class Sample:
    """One target in one round."""

    def __init__(self, load, cpu_seconds):
        self.per_second = load["requests"] / load["seconds"]
        self.cpu_us = cpu_seconds * 1e6 / load["requests"]
        self.p50_ms, self.p99_ms = load["p50"] * 1e3, load["p99"] * 1e3
        self.failures = load["failures"]


def measure(bench, name, about, targets):
    """Samples by target, in the order of the rounds."""
    for target in targets:  # fills the pools
        target.ask(1)
    rounds = {target.name: [] for target in targets}
    count = rounds_of(name, bench.options.rounds)
    for number in range(count):
        say(about, number, count)
        for target in bench.shuffled(targets):
            if target.before:
                target.ask(target.before)
            before = target.proxy.cpu_seconds()
            load = target.ask(bench.options.seconds)
            rounds[target.name].append(Sample(load, target.proxy.cpu_seconds() - before))
    return rounds


def result(name, about, rounds, base="haproxy", of="serin", notes=()):
    """Ratios are of one target to each of the others, and in the table of all to the base."""
    ratio = lambda one, other, value: [value(a) / value(b) for a, b in zip(rounds[one], rounds[other])]
    cpu, rate = (lambda one: one.cpu_us), (lambda one: one.per_second)
    header = ["proxy", "requests/s", "CPU µs/request", "p50 ms", "p99 ms"]
    header += [f"CPU, ratio to {base}", f"requests/s, ratio to {base}"] if base in rounds else []
    rows = []
    for target, samples in rounds.items():
        row = [target, spread(map(rate, samples), 0), spread(map(cpu, samples), 1),
               spread([one.p50_ms for one in samples], 2), spread([one.p99_ms for one in samples], 2)]
        if base in rounds:
            row += [spread(ratio(target, base, cpu), 2), spread(ratio(target, base, rate), 2)]
        rows.append(row)
    failed = {target: sum(one.failures for one in samples) for target, samples in rounds.items()}
    notes = [*notes, *(f"{target}: {count} requests failed" for target, count in failed.items() if count)]
    others = [target for target in rounds if target != of]
    return Result(name, about, len(rounds[of]), table(header, rows), notes, sum(failed.values()), {
        measured: {other: ratio(of, other, value) for other in others}
        for measured, value in [("CPU per request", cpu), ("requests/s", rate)]})


@dataclass
class Load:
    """A scenario in which one load generator asks all proxies, one at a time."""

    about: str
    ask: Callable
    setup: Setup = Setup()
    note: str = ""

    def run(self, bench, name):
        with bench.running(self.setup) as proxies:
            targets = [Target(proxy.name, proxy, partial(self.ask, proxy, cores=bench.load_cores)) for proxy in proxies]
            return result(name, self.about, measure(bench, name, self.about, targets), notes=[self.note] if self.note else [])


class Sticky:
    """The same keys for all; beside it Serin without stickiness, whose split is exact."""

    KEYS = 10_000
    about = f"HTTP/1.1, 1 KiB answers, split by one of {KEYS} keys in a request field"

    def run(self, bench, name):
        script = bench.place() / "keys.lua"
        script.write_text(rotating(1, self.KEYS))
        ask = lambda proxy: partial(wrk, proxy, cores=bench.load_cores, script=script)
        with bench.running(Setup(sticky=True)) as proxies:
            targets = [Target(proxy.name, proxy, ask(proxy)) for proxy in proxies]
            exact = next(proxy for proxy in bench.plain if proxy.name == "serin")
            targets.append(Target("serin, exact", exact, ask(exact)))
            return result(name, self.about, measure(bench, name, self.about, targets), notes=[
                "Each sends 5 % of the keys to a second version by a hash of the key: Serin by `sticky.header`, HAProxy by "
                "`xxh32,mod` in `use_backend`, nginx by `split_clients`, Envoy by weighted clusters with `use_hash_policy`; only "
                "Serin counts and times the versions. `serin, exact` is asked the same and does what it does by default: it "
                "splits each request exactly, without a key."])


class Threads:
    """Everything on both cores."""

    THREADS = 2
    about = "HTTP/1.1, 1 KiB answers, proxies with 2 threads on two cores that load generator and upstream use as well"

    def run(self, bench, name):
        cores = bench.load_cores | bench.proxy_cores
        with Upstream(bench.place(), cores, self.THREADS) as upstream:
            with bench.running(Setup(threads=self.THREADS), upstream, cores) as proxies:
                targets = [Target(proxy.name, proxy, partial(wrk, proxy, cores=cores, threads=self.THREADS))
                           for proxy in proxies]
                return result(name, self.about, measure(bench, name, self.about, targets), notes=[
                    "What load generator and upstream take is the same for all, and draws requests/s together."])


LOADS = {
    "h1-1k": Load("HTTP/1.1 in and out, 1 KiB answers", wrk),
    "h1-1m": Load("HTTP/1.1 in and out, 1 MiB answers", partial(wrk, path="/1m")),
    "h1-post": Load("HTTP/1.1 in and out, 4 KiB in each request, short answers", wrk_post),
    "h2-1k": Load("HTTP/2 without TLS in, HTTP/1.1 out, 1 KiB answers", h2load),
    "h2-tls-1k": Load("HTTP/2 under TLS in, HTTP/1.1 out, 1 KiB answers", partial(h2load, tls=True)),
    "h1-tls-1k": Load("HTTP/1.1 under TLS in, HTTP/1.1 out, 1 KiB answers", partial(h2load, tls=True, protocol="h1"),
                      note="Each round begins with 64 handshakes, which are counted."),
    "endpoints": Load("HTTP/1.1, 1 KiB answers, 10 endpoints of each version, the less busy of two drawn at random", wrk,
                      Setup(endpoints=10)),
    "sticky": Sticky(),
    "threads-2": Threads(),
}
