"""Attacks. A kind is one file with `Params` and `perturb(params, target, images, labels, generator) -> Images`.

`perturb` returns one candidate a row; who calls it projects and judges it (basin/evaluation/cascade.py), so that no attack can report a
success outside the ball. Rows are independent (those of `surrogate` teach one net). `BLACK_BOX = True` in a file says that it takes no
gradient of the network, `NEEDS_TWIN = True` and `NEEDS_FEATURES = True` that it cannot do without that part of the target.
`SEARCHES = True` says that it takes `Target.incumbent`'s word for what is broken, so that it may follow the gradient of a quicker function.
`fitted(params, classes, randomised) -> Params`, where a file has it, is what it runs on so many classes, or on a random network, where
that is not what was asked for; it raises Mistake where there is nothing that it could run. `perturb` fits itself.
"""
