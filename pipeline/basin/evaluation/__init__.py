"""How a model is judged: what it is (subject, declaration), which attacks that asks for (adaptive), the cascade, draws, outcomes, flags.

Attacks are given to it by name; the reported function alone decides. Start with robustness.py: the whole way in one function.
"""
