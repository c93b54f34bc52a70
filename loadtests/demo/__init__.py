"""`nightjar demo`: one small real system under the same load in three modes, and the report of its recorded run.

A preset of `loadtests.arms`. `command` reads options, `run` goes through the modes while `watch` samples and shows the fleet.
`machine` and `memory` look at what it runs on. What was recorded becomes a `summary` with `checks`, the sentences of `caption` and
the page of `report`; `nightjar report` makes the last ones anew from the rows.
"""
