"""`make bench-latency`: what users wait for under bursts of long prompts, against every static pair of K, in virtual time.

Options are those of `nightjar simulate`; `--only rule` adds the rule that is tried out.

suite     its experiments, bars and table
bursts    what is run, and what is kept of it
bars      how the best pair is picked, the bars, and the table
rule      the fleet with the rule of what users wait for
__main__  the command
"""
