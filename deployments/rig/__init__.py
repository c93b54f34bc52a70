"""Runs the code paths of a GPU engine on a machine without a GPU: model runner V2 and asynchronous scheduling."""
