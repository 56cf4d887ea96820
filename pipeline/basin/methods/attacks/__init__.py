"""Attacks. A kind is one file with `Params` and `perturb(params, target, images, labels, generator) -> Images`.

`perturb` returns one candidate a row; who calls it projects and judges it (basin/evaluation/cascade.py), so that no attack can report a
success outside the ball. Rows are independent (those of `surrogate` teach one net). `BLACK_BOX = True` in a file says that it takes no
gradient of the network, `NEEDS_TWIN = True` and `NEEDS_FEATURES = True` that it cannot do without that part of the target.
`check(params, classes)`, where a file has it, raises Mistake on a number of classes that it cannot be run with, before anything is.
"""
