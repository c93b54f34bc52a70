"""What outlives the actor's process: the checkpoint in a store, the journal, the recording and its replay, what was learned."""
