"""The console script `basin`: what `dvc repro`, Prefect and MLflow have no command for.

Words in, words out; imports what a command needs when it is called. Start with app.py.
"""
