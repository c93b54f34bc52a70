"""Mutation testing of what decides: `make mutants` (docs/testing.md).

targets     the modules, and the tests that must notice a mutant of each
mutating    the mutants of a source, made by cosmic-ray, without those that say nothing
forking     one test run in a fork of a process that has imported the libraries already
worker      one module: its tests as they are, then its mutants, one line of JSON each
survivors   explained.toml: mutants that live, and why
verdict     counts, what was missed, the tables
"""
