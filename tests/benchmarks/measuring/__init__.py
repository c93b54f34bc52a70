"""What the benches that measure share: how often something is measured, what came out, how it is told and written.

repeats     how often, by count and clock
statistics  means, intervals, fits
outcome     what a section hands back
run         one run: its sections, its facts, what it found so far
report      tables, summary.json, raw rows and charts
"""
