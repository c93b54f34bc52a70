"""The sections of `make bench-engine`.

off             OFF against plain vLLM and against stock K=0
crossover       every K and the planner at steady batches, then under `changing_load`
bursts          what users wait for under bursts of long prompts with short answers, to the last answer
restarts        what a restart costs, and acceptance after it; `restart_record` is one, `restart_cost` judges its price, `moves`
                are those of a draft's memory, `no_catch_up` is the drafter that reads nothing again
simulator       a profile fitted to these measurements (`step_times`), and what it predicts
pressure        more requests than the KV cache holds, with the draft's memory lent and without
"""
