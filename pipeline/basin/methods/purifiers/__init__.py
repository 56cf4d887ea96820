"""What cleans an image before it is classified. A kind is one file with `Params` and `Purifier(params)`, images in [0, 1] -> the same."""
