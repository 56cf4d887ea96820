"""The threat, as params.yaml has it; the ball that it stands for is in basin/threat/ball.py."""

from typing import Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator
from pydantic_core import PydanticKnownError

from basin.config.settings import Radius, Settings
from basin.errors import Mistake, did_you_mean

LOW, HIGH = 0.0, 1.0  # the pixel range; an attacked image stays inside it


class Threat(Settings):
    """A norm and a radius."""

    norm: Literal["linf", "l2", "l1"] = Field(description="norm of the perturbation, linf, l2 or l1")
    eps: Radius = Field(
        description="radius in pixels scaled to [0, 1], above 0 and, in linf, at most 1; eight grey levels are written 8/255"
    )

    @field_validator("eps")
    @classmethod
    def _a_pixel_moves_by_one_at_most(cls, eps: float, others: Any) -> float:
        if others.data.get("norm") == "linf" and eps > HIGH - LOW:
            raise PydanticKnownError("less_than_equal", {"le": 1})
        return eps

    def __str__(self) -> str:
        return named(self.norm, self.eps)


def named(norm: str, eps: float) -> str:
    """A threat in the names of models, columns and metrics: linf-0.15, l2-0.5, linf-8_255."""
    return f"{norm}-{written(eps).replace('/', '_')}"


def written(eps: float) -> str:
    """A radius as people write it: 0.15, and 8/255 where the number is one of grey levels that has no short decimal."""
    steps = round(255 * eps)
    levels = steps and abs(255 * eps - steps) < 1e-3 and float(f"{eps:.4g}") != eps
    return f"{steps}/255" if levels else f"{eps:.4g}"


def asked(norm: str, eps: float | str) -> Threat:
    """The threat of the command line's words; `eps` in pixels scaled to [0, 1], "8/255" too. Raises Mistake on one that is none."""
    norms = get_args(Threat.model_fields["norm"].annotation)
    if norm not in norms:
        raise Mistake(f"norm: no such norm (got {norm!r}). {did_you_mean(norm, norms)}")
    try:
        return Threat.model_validate({"norm": norm, "eps": eps})
    except ValidationError as error:
        raise Mistake(*(f"{e['loc'][0]}: {_got(e['msg'], e['input'])}" for e in error.errors())) from None


def asked_also(words: str) -> Threat:
    """The threat of NORM:EPS. Raises Mistake on words that are none."""
    norm, _, eps = words.partition(":")
    try:
        return asked(norm, eps)
    except Mistake as mistake:
        raise Mistake(f"--also: no NORM:EPS (got {words!r}: {mistake.messages[0].partition(' (')[0]}). Write e.g. l2:0.5.") from None


def _got(message: str, value: Any) -> str:
    what, _, advice = message.partition(". ")
    return f"{what[0].lower()}{what[1:]} (got {value!r}). {advice}"
