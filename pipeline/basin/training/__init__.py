"""The loop that every training stage runs: phases, schedules, weight averages, checkpoints after each epoch.

Knows losses as functions and nothing of which method or attack is behind them (methods/training). Start with phase.py, then optimise.py.
"""
