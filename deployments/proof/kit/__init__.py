"""`nightjar gpu-proof`: what somebody with a GPU runs, and sends back the page of.

command     the command line
chosen      which models, seeds and sizes: everything that two runs of the kit must share to be one
plan        the phases, in their order
engines     an engine of the kit, and the arguments that production would start it with
tasks       a phase, its tasks, and what a task finds
phases/     off against plain, facts, start-up, correctness, K at random, coming back, catch-up, lending, failing open, contest
child       one task in a process of its own
running     runs the tasks, and leaves out those that an earlier run finished
environment what such a process finds in its environment
metered     an engine whose speed is measured, in a process that another one asks
planned     the policy beside such an engine
refusing_worker  a worker that does not start
report      the JSON, the Markdown and the HTML page
telling     what may stand in them: no prompt, no secret, no path of the machine
"""
