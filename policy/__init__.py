"""The room that decides: pure functions and records, no Ray, no vLLM, no clock of its own.

Reports enter by `controller.py`, the one loop: `intake.py` takes each into `state.py`, and `decision/` answers all of them once a
period, by `evidence/` (what was measured), `planners/`, `exploration.py` and `restarts/`. `issuer.py` puts versions on what was
decided, `exchange.py` is the replica's side of that, and `step/` what an engine does with it in every step. `operator/` is what
people set, `status/` and `words.py` what they are told; `learned.py` and `priors.py` are what outlives a policy.
"""
