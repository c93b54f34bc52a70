"""`nightjar compare`: arms in turns on one running system, under a load of the user's, and what may be said of the difference.

A preset of `loadtests.arms`. Data flow: `command` reads options into a plan, the conductor of `run` plays its turns one by
one, and each turn leaves its raw rows and a line in the run's folder. Out of that folder alone come the findings, and the page and
table that people read (`page`); so `nightjar report` gives the same, and a run that was stopped goes on where it was.
"""
