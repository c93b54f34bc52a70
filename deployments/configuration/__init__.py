"""`nightjar check` and `nightjar migrate`: what a configuration file means, known before anything is deployed."""
