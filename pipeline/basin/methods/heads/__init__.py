"""Heads. A kind is one file with

- `Params`: what defines the function, kept in the recipe;
- `Head(params, width, classes)`: features [n, width] -> logits [n, classes];
- `Schedules`: how it is trained;
- `phases(schedules, classifier, loss, train) -> list[Phase]`: its training on top of a backbone that stays as it is. `loss` may be an
  iterator of losses (basin/methods/training), so a phase that adds a term of its own goes through `optimise.each`.

Where the form of a head decides its schedules, `schedules(params)` returns the table instead of `Schedules`.
"""
