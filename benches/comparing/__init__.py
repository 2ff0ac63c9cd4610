"""What `benches/compare` is made of.

`running` has processes and what they take, `upstream` what is asked, `peers` the proxies, `equal` the check that they do equal
work, `load` who asks, `bench` what all scenarios share. Scenarios are in `measuring` (CPU per request), `latency` (at a fixed
rate), `memory` (of `clients` that wait) and `services` (Serin with many of them); `saying` has the tables and the goals.
"""
