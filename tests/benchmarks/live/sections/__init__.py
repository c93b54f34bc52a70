"""The sections of `make bench-live`.

cold            two replicas learn together, one learns alone; `learning_loss` is what those lose until they know
steady          every K and the planner at three loads
changing        a load that crosses the crossover, with vLLM's own table, tuned on `steady`, among the rivals
categories      what is accepted of prompts of each category
"""
