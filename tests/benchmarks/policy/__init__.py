"""`make bench-policy`: the planner against every rival in virtual time, judged.

It is `nightjar simulate` with more experiments, which are this project's evidence and no tool of a user's: storms, faults, liars,
the paper's comparison. Options are the same.

suite        all of them, with their bars, tables and charts
bars         what the planner must show under storms and faults
tables       tables and charts of these experiments
paper_table  the paper's comparison beside ours
measures     what is kept of their runs
experiments  what is run
__main__     the command
"""
