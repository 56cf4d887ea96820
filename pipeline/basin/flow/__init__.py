"""Prefect: when, where and how often to try. The graph is DVC's (basin/repro), never a second copy; Ray lends machines (cluster.py).

The only room that imports prefect, which reads its settings then: call `environment.apply()` before. Start with reproduction.py.
"""
