"""Heads. A kind is one file with

- `Params`: what defines the function, kept in the recipe;
- `Head(params, width, classes)`: features [n, width] -> logits [n, classes];
- `Schedules`: how it is trained;
- `phases(schedules, classifier, loss) -> list[Phase]`: its training on top of a backbone that stays as it is.
"""
