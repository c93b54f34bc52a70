"""Arms in turns: what every comparison of ours is computed with.

`statistics` has the one `Interval` and the ratio of two arms over rounds that both played. It knows nothing of who runs an arm:
`nightjar demo`, `nightjar compare` and the benches hand it their rows.
"""
