"""Feature extractors. A kind is one file with `Params` and `Backbone(params, shape)`, images -> features of `.width`."""
