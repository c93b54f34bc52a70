"""`nightjar check` and `nightjar migrate`: what a configuration file means, known before anything is deployed.

check    reads a file and says what is wrong with it (report.py is the way through it)
migrate  edits one, and undoes the edits; it asks check what a file means
"""
