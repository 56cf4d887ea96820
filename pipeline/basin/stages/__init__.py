"""One thin script a stage of the graph: parse the name, load, call, save; `python -m basin.stages.STAGE` in a workspace runs one.

May use every room but cli, and no other room uses it; in a checkout dvc.yaml puts the code beside it first. Start with entry.py.
"""
