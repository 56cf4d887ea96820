"""What a stage tells MLflow, without ever waiting for it: a journal (journal.py), and the process that delivers it (mirror.py).

The only room that opens MLflow (client.py); knows nothing of what is told. Start with journal.py.
"""
