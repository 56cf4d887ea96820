"""Feature extractors. A kind is one file with `Params` and `Backbone(params, shape)`, images -> features of `.width`.

A kind that wants another classifier on top than a linear one gives it by `head(params)`, the head's tree."""
