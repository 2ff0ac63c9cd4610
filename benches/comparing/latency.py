"""Times at a fixed rate, counted from when each request was due, and what each proxy adds to them."""

from comparing.bench import say
from comparing.load import built_pace, pace
from comparing.saying import Result, spread, table

DIRECT = "direct"
BUSY = 0.7
"""A proxy that takes more of its core is near what it can bear."""


class Latency:
    """All proxies and the upstream itself, in interleaved rounds."""

    SECONDS = 1
    """Of 15,000 requests 150 are slower than their p99, which is enough; and the shorter a round, the fewer rounds see the
    machine do something else."""
    TIMES_AS_MANY = 4
    """Rounds, for each that other scenarios have."""

    about = "HTTP/1.1, 1 KiB answers at a fixed rate, times counted from when a request was due"

    def run(self, bench, name):
        options = bench.options
        binary = built_pace()
        proxies = {proxy.name: proxy for proxy in bench.plain}
        ports = {DIRECT: bench.upstream.ports[0], **{name: proxy.h1 for name, proxy in proxies.items()}}
        seen, busy = {target: [] for target in ports}, {target: [] for target in proxies}
        rounds = self.TIMES_AS_MANY * options.rounds
        for number in range(rounds):
            say(self.about, number, rounds)
            for target in bench.shuffled(list(ports)):
                before = proxies[target].cpu_seconds() if target in proxies else 0
                load = pace(binary, ports[target], options.rate, self.SECONDS, bench.load_cores)
                seen[target].append(load)
                if target in proxies:
                    # It also serves half a second that is not counted.
                    busy[target].append((proxies[target].cpu_seconds() - before) / (self.SECONDS + 0.5))
        return self.result(name, seen, busy, options.rate)

    def result(self, name, seen, busy, rate):
        p50, p99 = (lambda load: load["p50_us"]), (lambda load: load["p99_us"])
        added = {(target, value): [value(load) - value(direct) for load, direct in zip(seen[target], seen[DIRECT])]
                 for target in busy for value in (p50, p99)}
        header = ["", "p50 µs", "p99 µs", "p50 added µs", "p99 added µs", "p99 added, ratio to haproxy", "share of its core"]
        rows = []
        for target, loads in seen.items():
            row = [target, spread(map(p50, loads), 0), spread(map(p99, loads), 0)]
            if target in busy:
                row += [spread(added[target, p50], 0), spread(added[target, p99], 0),
                        spread(ratios(added, target, "haproxy", p99), 2), spread([100 * one for one in busy[target]], 0) + " %"]
            rows.append(row + [""] * (len(header) - len(row)))
        failures = {target: sum(load["failures"] for load in loads) for target, loads in seen.items()}
        notes = [f"{rate} requests/s over 64 connections; what is added is the quantile less the direct one of the same round."]
        notes += [f"{target}: {count} requests failed" for target, count in failures.items() if count]
        notes += [f"{target} is too busy at this rate; `--rate` sets a lower one" for target, shares in busy.items()
                  if sorted(shares)[len(shares) // 2] > BUSY]
        others = [target for target in busy if target != "serin"]
        return Result(name, self.about, len(seen[DIRECT]), table(header, rows), notes, sum(failures.values()), {
            f"{percent} added": {other: ratios(added, "serin", other, value) for other in others}
            for percent, value in [("p50", p50), ("p99", p99)]})


def ratios(added, one, other, value):
    """Of the rounds in which the other one added anything."""
    pairs = zip(added.get((one, value), []), added.get((other, value), []))
    return [mine / theirs for mine, theirs in pairs if theirs > 0]
