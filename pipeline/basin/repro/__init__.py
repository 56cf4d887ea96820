"""DVC: the graph of stages and its reproduction (graph.py), dvc.lock (lock.py), guarded children (guard.py), slots on this machine.

Whoever runs DVC does so by what is here; knows nothing of what a stage computes. Start with graph.py.
"""
