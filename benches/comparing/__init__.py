"""What `benches/compare` is made of.

`running` has processes and what they take, `upstream` what is asked, `peers` the proxies, `load` who asks, `idle` what
connections take that ask for nothing, and `saying` the tables.
"""
