"""Arms in turns: the one harness of every comparison.

An `arm` is a mode or a planner of a running system, or another server; its module says whose turn is when, too. `session` puts the
system into an arm and sees it there, `load` sends a turn's load and leaves a file, `measures` reads what it gave. `statistics` has
the one `Interval` and the ratio of two arms over rounds that both played, `verdict` what may be said of it, `stock_table` tunes the
rival that vLLM brings itself. Presets are `nightjar demo`, `nightjar compare`, the benches on live systems and the contest of
`nightjar gpu-proof`; the simulator tunes its rival with the same table.
"""
