"""`make bench-engine`: Nightjar's bars on real engines, on one pinned CPU core, every comparison interleaved.

`python -m tests.benchmarks.engine --help` says what it does. Data flow: `__main__` starts engines (`engines`, each a process that
runs `engine_host`), hands them to the sections, and writes what they found (`tests.benchmarks.measuring`).

    environment     what an engine needs around it
    fixture         models, prompts, engine arguments: what is measured
    engine_host     one engine stepped by hand, served to another process; `step_record` is what it tells of a step
    engines         the engines as the sections see them: calls across a pipe
    fleet_link      the product's policy in lockstep with an engine
    effort          how much is measured
    measured        cells: what steps of one arm at one batch amount to
    sections        what is measured, a module each: the bars and what they are made of
"""
