"""Augmentations against what a loop over images and pixels makes of the same draws."""

import torch

from basin.methods.augmentations import crop, cutout, flip
from basin.randomness import generator


def images(n: int = 400, h: int = 6, w: int = 9):
    return torch.rand(n, 2, h, w, generator=generator(0, "images")) * 0.5 + 0.25  # never 0


def test_a_flip_mirrors_a_share_of_the_images_and_leaves_the_others():
    x = images()
    z = flip.augment(flip.Params(share=0.3), x, generator(0, "flip"))
    mirrored = (z == x.flip(3)).flatten(1).all(1)
    assert torch.equal(mirrored, ~(z == x).flatten(1).all(1))
    assert abs(mirrored.float().mean() - 0.3) < 0.08  # three and a half standard deviations
    assert torch.equal(flip.augment(flip.Params(share=0), x, generator(0, "flip")), x)
    assert torch.equal(flip.augment(flip.Params(share=1), x, generator(0, "flip")), x.flip(3))


def test_a_crop_is_the_padded_image_moved_and_every_move_occurs():
    x, p = images(), 2
    z = crop.augment(crop.Params(padding=p), x, generator(0, "crop"))
    padded = torch.zeros(len(x), 2, 6 + 2 * p, 9 + 2 * p)
    padded[:, :, p : p + 6, p : p + 9] = x
    moves = {}
    for i in range(len(x)):
        at = [(t, s) for t in range(2 * p + 1) for s in range(2 * p + 1) if torch.equal(z[i], padded[i, :, t : t + 6, s : s + 9])]
        assert len(at) == 1, i
        moves[at[0]] = moves.get(at[0], 0) + 1
    assert len(moves) == 25


def test_cutout_blanks_one_square_around_a_pixel_of_the_image():
    x = images()
    z = cutout.augment(cutout.Params(side=4, fill="zero"), x, generator(0, "cutout"))
    centres = set()
    for one, own in zip(z, x):
        blank = one[0] == 0
        assert torch.equal(blank, one[1] == 0) and torch.equal(one[:, ~blank], own[:, ~blank])
        rows, columns = blank.any(1).nonzero().flatten(), blank.any(0).nonzero().flatten()
        assert torch.equal(blank, blank.any(1)[:, None] & blank.any(0))
        assert 2 <= len(rows) <= 4 and 2 <= len(columns) <= 4  # at the edge half of it lies outside
        centres.add((int(rows[0]), int(columns[0])))
    assert len(centres) > 20
    filled = cutout.augment(cutout.Params(side=4), x, generator(0, "cutout"))
    mean = x.mean((2, 3), keepdim=True).expand_as(x)
    assert torch.equal(filled, torch.where(z == 0, mean, x))
