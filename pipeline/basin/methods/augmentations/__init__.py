"""What a batch goes through in training alone. A kind is one file with `Params` and `augment(params, images, generator)`.

Images in [0, 1] -> as many, of the same size and range, each changed by draws of its own."""
