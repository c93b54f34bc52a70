"""One simulated engine: what a replica of vLLM does step by step, in virtual time.

`simulated_engine` runs a step: `scheduler` says who is in it, with blocks from `kv_blocks`; `decode_rows` holds who decodes, and
who accepts which drafts, by `acceptance_classes` and `random_numbers`; `draft_memory` has the draft's weights. `step_account`
counts what the policy is told and what results need, `leases` restarts that ran at once, and `truth` knows what no planner may, its
own oracle aside.
"""
