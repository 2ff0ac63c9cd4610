"""Tables of medians and ratios, and what was to be reached."""

import statistics
from dataclasses import dataclass, field

# Scenario, what is measured, whom it is compared with: the comparison, what is to be reached first, and then.
GOALS = {
    ("h1-1k", "CPU per request", "haproxy"): ("≤", 1.00, 0.85),
    ("h1-1m", "CPU per request", "haproxy"): ("≤", 0.55, 0.45),
    ("h2-1k", "CPU per request", "haproxy"): ("≤", 1.60, 1.00),
    ("h2-1k", "CPU per request", "nginx"): ("≤", 0.80, 0.50),
    ("latency", "p99 added", "haproxy"): ("≤", 1.10, 0.90),
    ("threads-2", "requests/s", "haproxy"): ("≥", 1.00, 1.15),
    ("idle", "memory, at once", "envoy"): ("≤", 1.00, 0.50),
    ("idle-h2", "memory, at once", "envoy"): ("≤", 1.00, 0.50),
    ("idle-tls", "memory, at once", "envoy"): ("≤", 1.00, 0.50),
    ("services-1000", "CPU per request", "one asked, itself at 1 × 1"): ("≤", 1.10, 1.05),
    ("services-1000", "CPU per request", "all asked, itself at 1 × 1"): ("≤", 1.10, 1.05),
}
# Where proxies have a core for themselves and it is busy, requests/s say again what CPU per request says.
SAID_TWICE = {"requests/s"}


@dataclass
class Result:
    """What came of one scenario."""

    name: str
    about: str
    rounds: int
    table: str
    notes: list
    failures: int
    ratios: dict = field(default_factory=dict)
    """What was measured: whom Serin is compared with: its ratio in each round."""

    def text(self):
        notes = ["", *self.notes] if self.notes else []
        how = f"Median (least to most) over {self.rounds} rounds.\n"
        return "\n".join([f"\n### {self.name}: {self.about}\n", how, self.table, *notes])


def rounds_of(name, rounds):
    """Scenarios without a goal have two thirds as many."""
    return rounds if any(goal[0] == name for goal in GOALS) else max(1, 2 * rounds // 3)


def summary(results, conditions):
    """Serin divided by the others, in one table, with the goals beside it; can be pasted as it is."""
    peers = list(dict.fromkeys(peer for result in results for found in result.ratios.values() for peer in found))
    peers = [peer for peer in peers if "itself" not in peer and "exact" not in peer]
    rows = []
    for result in results:
        for measured, found in result.ratios.items():
            goals = [goal for goal in GOALS if goal[:2] == (result.name, measured) and found.get(goal[2])]
            if measured in SAID_TWICE and not goals:
                continue
            cells = [spread(found[peer], 2) if found.get(peer) else "" for peer in peers]
            rows.append([result.name, measured, *cells, "; ".join(judged(goal, found[goal[2]]) for goal in goals)])
    header = ["scenario", "Serin's … divided by the peer's", *peers, "goal"]
    return "\n".join([
        "\n## Summary\n", f"Made by `{conditions.command}` in {conditions.minutes:.0f} minutes on {conditions.day}: "
        f"{conditions.machine}; load average {conditions.loads} at the begin and the end; {conditions.versions}. Every proxy "
        f"adds X-Forwarded-For, -Proto and -Host, {conditions.id_and_hop} X-Request-Id and Via. Serin's figure divided by the "
        "peer's in the same round: median (least to most) of the rounds.\n", table(header, rows)])


def judged(goal, ratios):
    """Against whom, what was to be reached, and whether the median has."""
    _, _, against = goal
    sign, first, then = GOALS[goal]
    median = statistics.median(ratios)
    reached = lambda bound: median <= bound if sign == "≤" else median >= bound
    said = "both held" if reached(then) else "the first held" if reached(first) else "**not held**"
    shown = f"{against}: {spread(ratios, 2)}" if "itself" in against else against
    return f"{shown} {sign} {first:.2f}, then {then:.2f}: {said}"


def table(header, rows):
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


def spread(values, digits):
    values = list(values)
    if not values:
        return "–"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
