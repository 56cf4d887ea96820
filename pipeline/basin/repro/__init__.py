"""DVC: the graph of stages and its reproduction (graph.py), dvc.lock (lock.py), guarded children and slots on this machine.

The only room that knows DVC; knows nothing of what a stage computes. Start with graph.py.
"""
