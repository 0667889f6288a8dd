"""A run seen from outside.

run_files  status.json, metrics.jsonl and config.yaml of a run, also while it trains
watch      the picture of a run on a terminal
doctor     what a training would get on this machine
"""
