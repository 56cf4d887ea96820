"""The methods, one file a kind: sources, purifiers, backbones, heads, training methods, attacks. A file's stem is its name in params.yaml.

A kind knows the rooms below and no sibling; what varies is passed in. Start with attacks/pgd.py; CONTRIBUTING.md has each contract.
"""
