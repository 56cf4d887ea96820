"""Robust accuracy: the per-image worst case over a suite of attacks, with an outcome for every image.

The suite runs as a cascade: an image that one attack broke is not given to the next. Every candidate is projected into the ball and
judged here, by the reported function, whatever the attack says of it.

A random model is judged over draws: an image counts with the share of them in which it is read rightly, the worst point is that of the
lowest share, and when all attacks are done the stored points are judged again over fresh draws, because the lowest of many noisy shares
is lower than the truth.

Several processes share the batches out and have the same outcomes after each: a batch draws from a generator of its own, so who computes
it changes no bit, and what is earned is decided by each from all images.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import log_softmax

from basin import files, progress
from basin.checkpoint import UNREADABLE
from basin.errors import Mistake, said, short_of_memory
from basin.evaluation.outcomes import Outcomes, mean, pack, unpack
from basin.evaluation.subject import device_of
from basin.evaluation.ways import Attempt, Way
from basin.processes import ALONE, Group
from basin.randomness import drawing, generator, others_seeded, seed_for
from basin.threat.ball import TOLERANCE, ThreatModel
from basin.threat.target import Target, misread
from basin.types import Images, Labels, Logits, Network, PerImage

log = logging.getLogger(__name__)
T = TypeVar("T")
JUDGED = 20  # draws over which a candidate of a random model is judged, and the size of the ensembles that are reported
RISING = 0.005  # of all images: a doubling of steps and restarts that takes less than this is the last
FEWEST = 20  # images that an attack is probed on, where there are as many
LOST = 0.5  # images; of a random model in shares of draws
FRESH = 100  # draws over which its stored points are judged in the end


class Counted:
    """A network that counts the images passed through it."""

    def __init__(self, network: Network):
        self.network, self.passes = network, 0

    def __call__(self, x: Images) -> Logits:
        self.passes += len(x) * getattr(self.network, "draws", 1)
        return self.network(x)

    def single(self, x: Images) -> Logits:
        self.passes += len(x)
        return self.network.single(x)  # type: ignore[attr-defined]


@dataclass
class Evaluation:
    """A suite on a model. `classifier` is in evaluation mode, its parameters frozen; images are in [0, 1].

    `randomised` says whether two passes over an image may differ; `seed` is (seed, name) of everything that is drawn; `search` is a quicker
    function in which gradients may be followed (basin/evaluation/search.py); `doubted` says of what was found so far whether something
    speaks for an attack that was blind; `group`: the processes that share the batches; `of`: what the checkpoint is of.
    """

    classifier: Module
    twin: Module | None
    threat: ThreatModel
    seed: tuple[int, str]
    batch: int
    checkpoint: Path | None = None
    randomised: bool = False
    search: Module | None = None
    doubted: Callable[[Outcomes], bool] = lambda outcomes: False
    group: Group = ALONE
    of: str = ""

    def run(
        self,
        index: Labels,
        images: Images,
        labels: Labels,
        attempts: Mapping[str, Attempt],
        masked: Attempt | None = None,
        curve: tuple[Attempt, list[float]] | None = None,
        stored: Mapping[str, Images] | None = None,
        before: Callable[[Outcomes], None] = lambda outcomes: None,
    ) -> Outcomes:
        """Clean pass, naive pass, stored points, cascade, curve; where there is doubt, the attacks on what was spared. An interrupted run
        goes on after the last finished step; the checkpoint is the caller's to delete. `before` sees the outcomes of the clean pass."""
        outcomes, finished = self._resume(index, images, labels)
        if not finished and self.group.first:
            before(outcomes)
        steps: list[Callable[[], None]] = [partial(self._masked, outcomes, masked)] if masked else []
        steps += [partial(self._stored, outcomes, name, points) for name, points in (stored or {}).items()]
        attacks = {name: partial(self.attack, outcomes, name, attempt) for name, attempt in attempts.items() if self.can(attempt)}
        steps += [attack for name, attack in attacks.items() if not attempts[name].spared_by]
        if self.randomised:
            steps.append(partial(self._judge_again, outcomes))
        if curve:
            steps.append(partial(self._curve, outcomes, *curve))
        if self.group.size > (batches := self.batches(len(images))):
            log.warning("%s: not all of %d processes have work (got %d batches of images)", self.seed[1], self.group.size, batches)
        if finished:
            log.info("%s: goes on after %d of %d steps", self.seed[1], finished, max(finished, len(steps)))
        self._take(outcomes, steps, finished)
        spared = [attack for name, attack in attacks.items() if outcomes.spares(attempts[name].spared_by)]
        if spared and self.doubted(outcomes):
            self._keep(outcomes, (done := max(finished, len(steps))), len(steps) + len(spared))
            self._take(outcomes, [*steps, *spared], done)
        return outcomes

    def _take(self, outcomes: Outcomes, steps: Sequence[Callable[[], None]], finished: int) -> None:
        for position, step in enumerate(progress.each(steps[finished:], self.seed[1], "attacks", finished), start=finished + 1):
            self.fitting(step)
            self._keep(outcomes, position, len(steps))

    def _keep(self, outcomes: Outcomes, finished: int, planned: int) -> None:
        if self.checkpoint and self.group.first:
            files.write(self.checkpoint, pack(outcomes, finished, planned, self.of))

    def fitting(self, step: Callable[[], T]) -> T:
        """The step, begun again with half the batch wherever memory does not hold one."""
        while True:
            try:
                return step()
            except (MemoryError, RuntimeError) as error:
                if self.batch == 1 or not short_of_memory(error):
                    raise
                why = said(error)
            self.batch = -(-self.batch // 2)  # beyond the handler, which keeps the failed pass alive
            log.warning("%s: memory is short (%s); goes on with batches of %d", self.seed[1], why, self.batch)

    def can(self, attempt: Attempt) -> bool:
        """Whether the model has what the attack cannot do without."""
        module = attempt.attack.module
        has_twin = self.twin is not None or not getattr(module, "NEEDS_TWIN", False)
        return has_twin and (hasattr(self.classifier, "features") or not getattr(module, "NEEDS_FEATURES", False))

    def attack(self, o: Outcomes, name: str, attempt: Attempt) -> None:
        """One attack on the images that still hold, or on as many of them as it earns."""
        no_longer = attempt.doubling > 1 and not attempt.spared_by and o.last_taken < RISING
        if no_longer or (attempt.earned and o.taken(attempt.earned) * len(o) < LOST):
            o.spared |= {name: (0, len(o.alive))} if attempt.earned or attempt.probe else {}
            return
        rows = o.closest if attempt.probe else o.alive
        size = max(math.ceil(attempt.probe * len(rows)), FEWEST) if attempt.probe else len(rows)
        given = 0
        for k, part in enumerate(rows.split(size) if len(rows) else ()):
            held = float(o.share[part].sum())
            self.fitting(partial(self._part, o, part, name, attempt, k))
            given += len(part)
            if held - float(o.share[part].sum()) < LOST:
                break
        if attempt.probe:
            o.spared[name] = given, len(rows) - given
        o.after[name] = o.robust

    def _part(self, o: Outcomes, rows: Tensor, name: str, attempt: Attempt, number: int) -> None:
        """An attack on those of these images that hold, so that it may be begun again."""
        for candidates in self._candidates(o, rows[o.share[rows] > 0], name, attempt, self.threat, number):
            o.record(name, *candidates)

    def _stored(self, o: Outcomes, name: str, points: Images) -> None:
        """Points [n, c, h, w] that are there already, a row an image, on the images that still hold."""

        def judged(b: int, rows: Tensor) -> tuple[Images, Logits, PerImage]:
            with self.seeded(name, b):
                x = self.threat.project(points[rows], o.images[rows])
                return x, *self.judge(x, o.labels[rows])

        for rows, found in self._shared(o.alive, judged):
            o.record(name, rows, *found)
            o.passes += len(rows) * (JUDGED if self.randomised else 1)
        o.after[name] = o.robust

    def _masked(self, o: Outcomes, attempt: Attempt) -> None:
        """A naive attempt, alone, judged by the reported function; what it breaks counts like any other break."""
        o.masked, o.under["masked"] = o.share.clone(), str(attempt)
        for rows, x, logits, share in self._candidates(o, o.alive, "naive", attempt, self.threat):
            o.record(f"{attempt.attack.kind} ({attempt.way})", rows, x, logits, share)
            o.masked[rows] = share

    def _curve(self, o: Outcomes, attempt: Attempt, radii: list[float]) -> None:
        """Robust accuracy at rising radii; an image broken at one is broken at all larger ones, whose balls contain the point."""
        share = o.clean_share.clone()
        o.under["curve"] = str(attempt)
        o.curve = [(0.0, mean(share))]
        for eps in radii:
            alive = (share > 0).nonzero().flatten()
            for rows, _, _, held in self._candidates(o, alive, f"curve {eps}", attempt, self.threat.of_radius(eps)):
                share[rows] = torch.minimum(share[rows], held)
            o.curve.append((eps, mean(share)))

    def _judge_again(self, o: Outcomes) -> None:
        """The stored points of a random model over fresh draws, alone and in ensembles."""

        def judged(b: int, rows: Tensor) -> tuple[PerImage, PerImage, PerImage, Tensor]:
            y = o.labels[rows]
            with self.seeded("fresh draws", b):
                clean, passes = self._passes(o.images[rows], FRESH), self._passes(o.points[rows], FRESH)
            loss = -_averaged(passes)[torch.arange(len(rows)), y]
            return _right(passes, y), _right(clean, y), loss, torch.stack([_ensembles(one, y) for one in (clean, passes)], 1)

        ensembles = []
        for rows, found in self._shared(torch.arange(len(o)), judged):
            o.share[rows], o.clean_share[rows], o.loss[rows], ensemble = found
            ensembles.append(ensemble)
            o.passes += 2 * FRESH * len(rows)
        o.ensemble = torch.cat(ensembles)

    def batches(self, images: int) -> int:
        """How many batches so many images make."""
        return -(-images // self.batch)

    def _shared(self, rows: Tensor, compute: Callable[[int, Tensor], Sequence[Tensor]]) -> Iterator[tuple[Tensor, Any]]:
        """(the rows of a batch, what `compute(number, rows)` makes of it), batch by batch; each is computed by one of the processes."""
        batches = rows.split(self.batch) if len(rows) else ()  # of no rows torch makes one batch
        return zip(batches, self.group.over(batches, compute))

    def _candidates(
        self, o: Outcomes, rows: Tensor, name: str, attempt: Attempt, threat: ThreatModel, part: int = 0
    ) -> Iterator[tuple[Tensor, Images, Logits, PerImage]]:
        """(rows, projected candidates, the reported function's logits there, the share of draws that read them rightly), in batches."""
        first = part * self.batches(len(o))  # a number of its own for each batch of each part

        def found(b: int, chosen: Tensor) -> tuple[Images, Logits, PerImage, Tensor]:
            clean, labels = o.images[chosen].to(self.device), o.labels[chosen].to(self.device)
            counted, search = Counted(self.classifier), self.search if self.may_search(attempt) else None
            quick = Counted(search) if search else None
            single = counted.single if self.randomised and hasattr(self.classifier, "single") else None
            features, judge = getattr(self.classifier, "features", None), counted if quick else None
            target = Target(quick or counted, threat, self.twin, features, single, judge, self.batch)
            with self.seeded(name, first + b):
                with attempt.way.through(self.classifier):
                    draws = generator(*self.seed, name, first + b, device=self.device)
                    x = attempt.attack.module.perturb(attempt.attack.params, target, clean, labels, draws)
                if bad := int((~x.isfinite().flatten(1).all(1)).sum()):
                    log.warning("%s: points of %s are no numbers (%d images); their clean pixels stand for them", self.seed[1], name, bad)
                x = threat.project(torch.where(x.isfinite(), x, clean).detach(), clean)
                assert bool((threat.distance(x, clean) <= threat.eps + TOLERANCE).all()), f"{name} left the ball"
                logits, share = self.judge(x, o.labels[chosen])
            passes = counted.passes + (quick.passes if quick else 0) + len(chosen) * (JUDGED if self.randomised else 1)
            return x.cpu(), logits, share, torch.tensor(passes)

        with progress.work(name, self.batches(len(rows)), "batches") as work:
            for chosen, (x, logits, share, passes) in self._shared(rows, found):
                work.done += 1
                o.passes += int(passes)
                yield chosen, x, logits, share

    @staticmethod
    def may_search(attempt: Attempt) -> bool:
        """Whether the attempt may follow the gradient of the quicker function: where it says so, and would follow the model's own."""
        return getattr(attempt.attack.module, "SEARCHES", False) and attempt.way == Way() and not attempt.precise

    def judge(self, x: Images, labels: Labels) -> tuple[Logits, PerImage]:
        """The reported function's logits, and the share of draws in which each image is read rightly."""
        passes = self._passes(x, JUDGED if self.randomised else 1)
        return (_averaged(passes) if self.randomised else passes[0]), _right(passes, labels)

    @torch.no_grad()
    def _passes(self, x: Images, draws: int) -> Tensor:
        """[draws, n, classes]: the logits of single passes."""
        single = getattr(self.classifier, "single", self.classifier) if self.randomised else self.classifier
        return torch.stack([single(x.to(self.device)).cpu() for _ in range(draws)])

    @property
    def device(self) -> torch.device:
        return device_of(self.classifier)

    @contextmanager
    def seeded(self, name: str, batch: int) -> Iterator[None]:
        """Seed whatever the model draws: our layers by their generator, anything else by the global ones, which are put back."""
        purpose = (*self.seed, name, batch, "model")
        others = others_seeded(seed_for(*purpose)) if self.randomised else nullcontext()
        with drawing(self.classifier, generator(*purpose, device=self.device)), others:
            yield

    def _resume(self, index: Labels, images: Images, labels: Labels) -> tuple[Outcomes, int]:
        """The state at the checkpoint, or after the clean pass alone."""
        if self.checkpoint:
            self.group.copy(self.checkpoint)
        if self.checkpoint and self.checkpoint.exists():
            try:
                return unpack(self.checkpoint, index, images, labels, self.of)
            except UNREADABLE as error:
                log.warning("%s: unreadable checkpoint (%s); starting from the beginning", self.checkpoint, error)
        logits, share = self.fitting(partial(self._clean, images, labels))
        if len(bad := (~logits.isfinite().all(1)).nonzero().flatten()):
            raise Mistake(f"model: its logits are not finite (got so at image {int(bad[0])}, {len(bad)} in all). Mend its forward pass.")
        return Outcomes.untouched(index, images, labels, logits, share, len(images) * (JUDGED if self.randomised else 1)), 0

    def _clean(self, images: Images, labels: Labels) -> tuple[Logits, PerImage]:

        def judged(b: int, rows: Tensor) -> tuple[Logits, PerImage]:
            with self.seeded("clean", b):
                return self.judge(images[rows], labels[rows])

        logits, share = map(torch.cat, zip(*(found for _, found in self._shared(torch.arange(len(images)), judged))))
        return logits, share


def _averaged(passes: Tensor) -> Logits:
    """The logarithm of the mean probabilities of [draws, n, classes] logits."""
    return log_softmax(passes, 2).logsumexp(0) - math.log(len(passes))


def _right(passes: Tensor, labels: Labels) -> PerImage:
    """The share of [draws, n, classes] logits that read each image rightly."""
    return (~misread(passes, labels)).float().mean(0)


def _ensembles(passes: Tensor, labels: Labels) -> PerImage:
    """The share of ensembles of JUDGED draws that read each image rightly."""
    return torch.stack([_averaged(part).argmax(1) == labels for part in passes.split(JUDGED)]).float().mean(0)
