"""What every experiment is made of, and a whole run of some of them.

nominal      a profile at its usual acceptance: what it carries, and where speculation stops paying
loads        the loads by name, in shares of that
contestants  everybody who can decide, by name, and what each may know beforehand
scenes       where planners are compared: a profile, a load, a number of replicas
measures     what is kept of a run
efforts      how large a run is: quick, bench, full
experiment   a question and the waves of runs that answer it; a suite of them, and how its rows are judged and shown
campaign     the plan and its estimate, all runs over all cores, and what is written of them
"""
