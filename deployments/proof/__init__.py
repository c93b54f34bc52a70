"""Proves an engine: steered in every step, it must answer as plain vLLM does, and draft as it was told.

kit             `nightjar gpu-proof`
tiny_models     a target, a drafter of each kind and an adapter, made by code; `model_names` is what they are called
scenarios       what an engine is asked while its K changes in every step; `lending` is a draft that lends its memory meanwhile
driven_engine   a vLLM engine that is given requests and settings; `stepped_engine` is one that is stepped by hand
executed_steps  what its worker did in each step; `drafted_slots` looks at what its drafter wrote
verdict         what is wrong with all that, in words
lone_policy     the product's policy beside one engine
remote          an engine in a process of its own, called across a pipe
outcome         what such a process hands over at its end
"""
