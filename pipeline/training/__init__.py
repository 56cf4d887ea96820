"""Training methods. A kind is one file with `Params` and `loss(params, network, images, labels, threat, generator)`.

`network` is whatever maps images to logits, so that one method serves a backbone, a head alone and a whole classifier.
"""
