"""outcomes/<model>/<suite>/summary.json and stability.json as types. Accuracies are fractions in [0, 1]."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from basin.config.threat import named

FORMAT = 1  # of summary.json and the files beside it
Accuracy = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[Accuracy, Accuracy]


class Written(BaseModel):
    """Which version wrote a summary; the first did not say."""

    format: int = 1
    basin: str | None = None


class Threat(BaseModel):
    norm: str
    eps: Annotated[float, Field(gt=0)]

    def __str__(self) -> str:
        return named(self.norm, self.eps)


class Masked(BaseModel):
    """What an attack with the naive gradient would have reported."""

    attack: str
    robust: Accuracy
    interval: Interval


class Certified(BaseModel):
    """What no attack can break: by a Lipschitz constant (in L2) before the last layer, and the margin after it."""

    lipschitz: Annotated[float, Field(ge=0)]
    robust: Accuracy
    interval: Interval


class Undefended(BaseModel):
    """The model's twin without the defence, as measured inside the model's own transfer attack."""

    model: str
    clean: Accuracy
    robust: Accuracy


class Ensemble(BaseModel):
    """A random model's accuracies when the predictions of several draws are averaged; those of the summary are of single draws."""

    clean: Accuracy
    robust: Accuracy
    interval: Interval


class Curve(BaseModel):
    attack: str
    points: list[tuple[Annotated[float, Field(ge=0)], Accuracy]]


class Summary(BaseModel):
    """outcomes/<model>/<suite>/summary.json; further keys are allowed and ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str
    suite: str
    data: str
    data_digest: str
    threat: Threat
    run_threat: Threat | None = None  # that of the run, where the suite has a threat of its own
    n: Annotated[int, Field(gt=0)]
    clean: Accuracy
    robust: Accuracy
    interval: Interval
    attacks: dict[str, Accuracy]
    alone: dict[str, Accuracy | None] = {}
    spared: dict[str, tuple[int, int]] = {}  # attack -> images it was given, closest to falling first, and not: all, where it did not run
    masked: Masked | None = None
    certified: Certified | None = None
    ensemble: Ensemble | None = None
    twin: Undefended | None = None
    curve: Curve | None = None
    flags: list[str] = []
    passes: Annotated[int, Field(ge=0)]
    balanced_clean: Accuracy | None = None
    seed: int
    from_: Annotated[str | None, Field(alias="from")] = None
    training: str | None = None
    head: str | None = None
    backbone: str | None = None
    classes: list[str] | None = None

    @property
    def before(self) -> dict[str, float]:
        """The robust accuracy before each attack."""
        return dict(zip(self.attacks, [self.clean, *self.attacks.values()]))


class Trajectories(BaseModel):
    """Quartiles of r(t) = ||z~(t) - z(t)|| / ||z~(0) - z(0)|| over the pairs; r(t) is held to e^exponent."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    pairs: Annotated[int, Field(gt=0)]
    times: Annotated[list[float], Field(min_length=2)]
    lower: list[float]
    median: list[float]
    upper: list[float]
    exponents: dict[str, list[float]]

    @model_validator(mode="after")
    def _of_one_length(self) -> "Trajectories":
        if any(len(curve) != len(self.times) for curve in (self.lower, self.median, self.upper, *self.exponents.values())):
            raise ValueError("the curves have not as many points as there are times")
        return self


class Measured(BaseModel):
    """One flow of a model."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    flow: str
    T: Annotated[float, Field(gt=0)]
    images: Annotated[int, Field(gt=0)]
    numbers: dict[str, float]
    spectrum: list[tuple[float, float]]
    trajectories: Trajectories | None


class Stability(BaseModel):
    """stability.json; further keys are allowed and ignored."""

    flows: list[Measured]
