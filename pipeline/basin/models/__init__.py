"""What a classifier is made of: the composition and its folder, ODE solves and their stability, layers that draw or have several gradients.

Knows neither data sets nor attacks; particular backbones, heads and purifiers are kinds (methods/). Start with classifier.py.
"""
