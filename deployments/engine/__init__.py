"""All that touches vLLM's internals, and nothing else does. Read in this order; arrows between the rooms point downwards.

scheduler  in the engine core: chooses K before each step, counts after it, keeps the drafter's ledger and lends its memory
worker     in each worker: a drafter that does what the step's orders say, on vLLM's model runners V1 and V2
start      before the engine: which arguments it gets, whether its drafter can sleep, and what happens where vLLM refuses them
memory     the memory of a sleeping draft, on CPU and CUDA, and what scheduler and workers agree on about it

Beside them stand the processes of an engine on its node: their environment, cores, folder and end.
"""
