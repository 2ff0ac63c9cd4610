"""Memory that connections take: idle ones, and those with a request in flight."""

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Callable

from comparing.bench import say
from comparing.clients import Clients, ask_and_wait, ask_once_h1, ask_once_h2, ask_once_tls, receive_half, still_open
from comparing.peers import PROXIES, Setup
from comparing.running import Unusable
from comparing.saying import Result, spread, table
from comparing.upstream import Holder

ROUNDS = 3
WARM = 50
"""Requests before anything is measured, for what grows with the first ones."""


@dataclass
class Idle:
    """Connections over which one request was answered: all proxies are started anew in each round, and wait side by side."""

    protocol: str
    ask_once: Callable
    part: int = 1
    """So many times fewer connections than are asked for: handshakes take a client long."""

    def run(self, bench, name):
        options = bench.options
        count = max(1, options.connections // self.part)
        about = f"{count} idle connections, {self.protocol}, one request done"
        grown = {peer: [] for peer in bench.names}
        for number in range(ROUNDS):
            say(about, number, ROUNDS)
            with bench.running(Setup(), bench.upstream, checked=False) as proxies:
                for proxy in proxies:
                    warm_up(proxy, self.ask_once)
                self.round(bench, bench.shuffled(proxies), count, grown)
        return result(name, about, grown, ["at once", f"after {options.pause} s"], "KiB per idle connection")

    def round(self, bench, proxies, count, grown):
        waiting = []
        with ExitStack() as ending:
            for proxy in proxies:
                before = proxy.memory_bytes()
                clients = ending.enter_context(Clients(proxy, count, bench.load_cores, self.ask_once, still_open))
                at_once = kib_each(proxy, before, count)
                waiting.append((proxy, before, clients, at_once, time.monotonic()))
            for proxy, before, clients, at_once, since in waiting:
                time.sleep(max(0, since + bench.options.pause - time.monotonic()))
                grown[proxy.name].append((at_once, kib_each(proxy, before, count)))
                clients.step()


class Active:
    """Connections with a request in flight: while the upstream has not answered, and when half of its answer has passed."""

    def run(self, bench, name):
        count = bench.options.active
        about = f"{count} connections with a request in flight, HTTP/1.1"
        grown = {peer: [] for peer in bench.names}
        # Half as many again: it is no limit that is measured.
        setup = bench.asked(Setup(requests=count + count // 2, at_once=True))
        for number in range(ROUNDS):
            say(about, number, ROUNDS)
            place = bench.place()
            with Holder(bench.load_cores) as upstream:
                for peer in bench.shuffled(bench.names):
                    with PROXIES[peer](place, bench.proxy_cores, upstream, bench.certificate, setup) as proxy:
                        grown[peer].append(self.round(bench, proxy, upstream, count))
        return result(name, about, grown, ["not answered yet", "half the answer passed"], "KiB per active connection",
                      ["The connection to the upstream is part of it. nginx is set to `proxy_buffering off` here, as it would keep "
                       "the half back."])

    def round(self, bench, proxy, upstream, count):
        warm_up(proxy, ask_once_h1)
        before = proxy.memory_bytes()
        with Clients(proxy, count, bench.load_cores, ask_and_wait, receive_half) as clients:
            proxy.wait_until(f"{count} requests at the upstream", lambda: upstream.held() == count, 30)
            unanswered = kib_each(proxy, before, count)
            upstream.send_half()
            clients.step()
            return unanswered, kib_each(proxy, before, count)


def warm_up(proxy, ask_once):
    for _ in range(WARM):
        with closing(ask_once(proxy)):
            pass


def kib_each(proxy, before, count):
    grown = (proxy.memory_bytes() - before) / count / 1024
    if grown <= 0:
        raise Unusable(f"{proxy.name} has not grown by {count} connections: too few to be measured")
    return grown


def result(name, about, grown, moments, measure, notes=()):
    """Pairs of KiB by proxy, one for each round."""
    at = lambda peer, moment: [pair[moment] for pair in grown[peer]]
    ratio = lambda one, other, moment: [a / b for a, b in zip(at(one, moment), at(other, moment))]
    header, rows = ["proxy"], []
    for when in moments:
        header += [f"{measure}, {when}"] + (["ratio to envoy"] if "envoy" in grown else [])
    for peer in grown:
        row = [peer]
        for moment in range(len(moments)):
            row.append(spread(at(peer, moment), 1))
            row += [spread(ratio(peer, "envoy", moment), 2)] if "envoy" in grown else []
        rows.append(row)
    others = [peer for peer in grown if peer != "serin"]
    return Result(name, about, ROUNDS, table(header, rows), list(notes), 0, {
        f"memory, {when}": {other: ratio("serin", other, moment) for other in others}
        for moment, when in enumerate(moments)})


MEMORY = {
    "idle": Idle("HTTP/1.1", ask_once_h1),
    "idle-h2": Idle("HTTP/2 without TLS", ask_once_h2),
    "idle-tls": Idle("HTTP/1.1 under TLS", ask_once_tls, part=2),
    "active": Active(),
}
