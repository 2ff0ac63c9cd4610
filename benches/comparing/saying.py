"""Tables of medians and ratios."""

import statistics

from comparing.idle import IDLE


def table(name, about, rounds):
    base = rounds.get("haproxy")
    header = ["proxy", "requests/s", "CPU µs/request", "p50 ms", "p99 ms"]
    header += ["CPU, ratio to HAProxy", "requests/s, ratio to HAProxy"] if base else []
    rows = []
    for proxy, samples in rounds.items():
        row = [proxy, spread([one.per_second for one in samples], 0), spread([one.cpu_us for one in samples], 1),
               spread([one.p50_ms for one in samples], 2), spread([one.p99_ms for one in samples], 2)]
        if base:
            row.append(spread([one.cpu_us / other.cpu_us for one, other in zip(samples, base)], 2))
            row.append(spread([one.per_second / other.per_second for one, other in zip(samples, base)], 2))
        rows.append(row)
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]
    failed = {proxy: sum(one.failures for one in samples) for proxy, samples in rounds.items()}
    notes = [f"{proxy}: {count} requests failed" for proxy, count in failed.items() if count]
    return "\n".join([f"\n### {name}: {about}\n", "Median (least to most) over the rounds.\n", *lines, *notes])


def idle_table(name, grown, options):
    header = ["proxy"]
    for when in ["at once", f"after {options.pause} s"]:
        header += [f"KiB per idle connection, {when}", "ratio to Envoy"]
    base, rows = grown.get("envoy"), []
    for peer, pairs in grown.items():
        row = [peer]
        for when, kib in enumerate(zip(*pairs)):
            ratios = [one / other[when] for one, other in zip(kib, base)] if base else []
            row += [spread(kib, 1), spread(ratios, 2) if ratios else ""]
        rows.append(row)
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]
    about = f"{options.connections} idle connections, {IDLE[name][0]}, one request done"
    return "\n".join([f"\n### {name}: {about}\n", "Median (least to most) over the rounds.\n", *lines])


def spread(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


