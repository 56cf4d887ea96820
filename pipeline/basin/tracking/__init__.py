"""What a stage tells MLflow, without ever waiting for it: a journal (journal.py), and the process that delivers it (mirror.py).

Opens MLflow (client.py), which registry/ uses too, and no other room; knows nothing of what is told. Start with journal.py.
"""
