"""The registry: one registered model a data set and threat, one version a model folder, an alias a model's name; the gate (gate.py).

The only room that knows MLflow's registry. Start with registration.py, to read versions with lookup.py; docs/registry.md has the reasons.
"""
