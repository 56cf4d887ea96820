"""A data set divided into train, validation and test, and the prepared files that every later stage reads.

Knows neither models nor attacks; where images come from is a kind (methods/sources). Start with splits.py.
"""
