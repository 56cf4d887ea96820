"""Where data comes from: one file a kind, named by its stem in params.yaml (`data: {kind: digits}`).

A kind defines `class Params(Settings)`, the keys it understands beside `kind` and `SplitSettings`, and
`def read(params: Params) -> Source`, which reads files, checks them, and divides nothing.
"""
