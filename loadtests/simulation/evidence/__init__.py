"""From raw rows of simulated runs to bars, tables and one page.

`runner` makes `rows`, and from them alone comes the rest: `cells` and what they decide of the `bars` in `bar_list`, those of a
step's limit and of prefill in files of their own, the tables (`grid`), the `summary`, what a terminal shows (`result_table`) and
the page (`policy_report`). `bars` has the record that the benches on real engines keep, too.
"""
