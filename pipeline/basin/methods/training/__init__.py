"""Training methods. A kind is one file with `Params` and `loss(params, network, images, labels, threat, generator)`.

`loss` is a tensor, or, for a method that steps more than once on a batch, an iterator of them: the optimiser steps after each, and an
image that wants a gradient then holds that of the loss before it (`x.grad`). `network` is whatever maps images to logits, so that one
method serves a backbone, a head alone and a whole classifier.
"""
