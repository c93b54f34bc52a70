"""`make bench-latency`: what users wait for under bursts of long prompts, against every static pair of K, in virtual time.

Options are those of `nightjar simulate`.

suite     its experiments, bars and table
bursts    what is run, and what is kept of it
bars      how the best pair is picked, the bars, and the table
in_time   requests in time, by a target of each load
__main__  the command
"""
