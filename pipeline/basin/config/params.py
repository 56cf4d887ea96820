"""params.yaml -> a frozen, typed `Config`. Every mistake in the file is reported at once, each with its key."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, create_model, field_validator
from pydantic_core import PydanticCustomError, ValidationError

from basin.config import names
from basin.config.document import read
from basin.config.kinds import AugmentationChoice, BackboneChoice, Choice, HeadChoice, PurifierChoice, TrainingChoice, choose, kinds, tables
from basin.config.names import REGISTERED, STAGES
from basin.config.schedule import Schedule
from basin.config.settings import Settings, error_line
from basin.config.splits import SplitSettings
from basin.config.start import Weights
from basin.config.suite import READY, Curve, Suite, ready
from basin.config.threat import Threat
from basin.errors import Mistake, did_you_mean


class Model(Settings):
    """What every model may be given."""

    purifier: PurifierChoice | None = Field(
        None, description="what cleans an image first: a table with its kind, or null for that of the model below"
    )
    cleaned: PurifierChoice | None = Field(
        None, description="a purifier whose outputs are added to the training images: a table with its kind, or null for none"
    )
    augmentation: list[AugmentationChoice] | None = Field(
        None, description="what each batch of training images goes through, in this order: a list of tables with their kinds, or null"
    )
    training: TrainingChoice = Field(description="the training method: a table with its kind")

    @field_validator("cleaned")
    @classmethod
    def _is_drawn_once(cls, cleaned: Choice | None) -> Choice | None:
        drawn = ("training_draws", "inference_draws")
        if cleaned and any(getattr(cleaned.table, name, 1) > 1 for name in drawn):
            raise PydanticCustomError("draws", "copies are cleaned once, with one mask each. Leave training_draws and inference_draws out.")
        return cleaned

    @field_validator("augmentation", mode="before")
    @classmethod
    def _is_no_purifier(cls, augmentation: Any) -> Any:
        if isinstance(augmentation, dict) and augmentation.get("kind") in kinds("purifiers"):
            raise PydanticCustomError("renamed", "is a list now; copies that a purifier cleaned are `cleaned`. Rename this key.")
        return augmentation


class Backbone(Model):
    """A backbone with a linear classifier, trained from fresh weights or from others."""

    backbone: BackboneChoice = Field(description="the feature extractor: a table with its kind")
    weights: Weights | None = Field(None, description="a file of weights to start from and its digest, or null for fresh ones")
    schedule: Schedule = Field(description="epochs, batch, optimiser and learning rate")


class Head(Model):
    """A new head on the backbone of another model, which stays as it is."""

    from_: str = Field(alias="from", description="the model below it, as STAGE/NAME")
    head: HeadChoice = Field(description="the head: a table with its kind")
    schedule: dict[str, Any] = Field(description="the schedule or schedules of the head's kind")

    @field_validator("schedule")
    @classmethod
    def _fits_the_head(cls, schedule: dict[str, Any], others: Any) -> dict[str, Any]:
        if "head" in others.data:
            head = others.data["head"]
            _schedules(head.tables, head.table).model_validate(schedule)
        return schedule

    @property
    def schedules(self) -> Settings:
        """As the head's own file understands them: torch is loaded now."""
        return schedules(self.head).model_validate(self.schedule)


def schedules(head: Choice) -> type[Settings]:
    """The table of a head's schedules in its own file, which may depend on its form: torch is loaded now."""
    return _schedules(head.module, head.params)


def _schedules(file: Any, params: Settings) -> type[Settings]:
    return file.schedules(params) if hasattr(file, "schedules") else file.Schedules


class Adversarial(Model):
    """Another model, trained further end to end."""

    from_: str = Field(alias="from", description="the model to go on from, as STAGE/NAME")
    schedule: Schedule = Field(description="epochs, batch, optimiser and learning rate")


class Attack(Settings):
    """Which models are attacked, with what, on how many images."""

    models: list[str] = Field(min_length=1, description="a list of models, each as STAGE/NAME")
    suites: list[str] = Field(min_length=1, description="a list of names under suites")
    images: int = Field(ge=1, description="how many test images, at least 1; all of them where there are fewer")
    batch: int = Field(256, ge=1, description="how many images are attacked at once, at least 1")


class Gate(Settings):
    """What a version has to show before it becomes the champion."""

    clean_floor: float = Field(0.5, ge=0, le=1, description="the clean accuracy that a champion has at least, 0 to 1")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="the confidence at which a paired difference counts, above 0.5 and below 1")
    accepted_flags: tuple[str, ...] = Field((), strict=False, description="a list of flags that need not be resolved; [] for none")


class Registry(Settings):
    """How models are registered, and who becomes champion."""

    name: str | None = Field(
        None,
        pattern=REGISTERED,
        description="the registered model's name, of letters (a to z), digits, _ . - and, inside, blanks, at most 255 of them; "
        "or null for <data>-<norm>-<eps>",
    )
    gate: Gate = Field(Gate(), description="what a version has to show before it becomes the champion")


class Config(Settings):
    """The whole of params.yaml."""

    seed: int = Field(ge=0, description="the seed of everything random, 0 or above")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto (a GPU if there is one), cpu or cuda")
    threads: int = Field(1, ge=1, description="CPU threads of a stage, at least 1; the last bits of a result depend on it")
    data: dict[str, Any] = Field(description="the data set: a table with its kind")
    threat: Threat = Field(description="the threat model: norm and eps")
    backbone: dict[str, Backbone] = Field(min_length=1, description="a table of named backbones")
    head: dict[str, Head] = Field(default_factory=dict, description="a table of named heads, {} for none")
    adversarial: dict[str, Adversarial] = Field(
        default_factory=dict, description="a table of named adversarially trained models, {} for none"
    )
    suites: dict[str, Suite] = Field(min_length=1, description="a table of named suites of attacks")
    attack: Attack = Field(description="what is attacked")
    registry: Registry = Field(Registry(), description="how models are registered")

    @field_validator("suites")
    @classmethod
    def _ready_made(cls, suites: dict[str, Suite]) -> dict[str, Suite]:
        taken = {name: suite.ready or name for name, suite in suites.items()}
        own = {name: suite for name, suite in suites.items() if taken[name] not in READY or suite.attacks or suite.adaptive}
        return {name: own.get(name) or ready(taken[name], suite) for name, suite in suites.items()}

    @field_validator("suites")
    @classmethod
    def _threats_differ(cls, suites: dict[str, Suite], others: Any) -> dict[str, Suite]:
        """A suite's own threat is another than the run's, so that what a worst case is of can be told from the suite alone."""
        told = [(name, suite.threat) for name, suite in suites.items() if suite.threat and suite.threat == others.data.get("threat")]
        if lines := [error_line("equal", "is the run's own. Leave it out.", (name, "threat"), str(threat)) for name, threat in told]:
            raise ValidationError.from_exception_data("suites", lines)
        return suites

    @field_validator("data")
    @classmethod
    def _fits_the_kind(cls, data: dict[str, Any]) -> dict[str, Any]:
        """The keys of the kind and those of every kind in one table, so that a misspelt key is compared with them all."""
        kind, settings = str(data.get("kind")), {key: content for key, content in data.items() if key != "kind"}
        if kind not in kinds("sources"):
            choose("sources", data)  # raises
        create_model("Data", __base__=(SplitSettings, tables("sources", kind).Params)).model_validate(settings)
        return data

    def entry(self, model: str) -> Backbone | Head | Adversarial:
        """The table of STAGE/NAME. Raises Mistake on a name that the file does not have."""
        entries = {f"{stage}/{name}": entry for stage in STAGES for name, entry in getattr(self, stage).items()}
        if model not in entries:
            raise Mistake(f"params.yaml: no such model (got {model!r}). {did_you_mean(model, entries)}")
        return entries[model]

    def suite(self, name: str) -> Suite:
        """The suite of that name. Raises Mistake on a name that the file does not have."""
        if name not in self.suites:
            raise Mistake(f"params.yaml: suites: no such suite (got {name!r}). {did_you_mean(name, self.suites)}")
        return self.suites[name]

    @property
    def source(self) -> Choice:
        return choose("sources", {k: v for k, v in self.data.items() if k not in SplitSettings.model_fields})

    @property
    def splits(self) -> SplitSettings:
        return SplitSettings.model_validate({k: v for k, v in self.data.items() if k in SplitSettings.model_fields})

    def alias(self, model: str) -> str:
        """The alias of STAGE/NAME in the registry (basin/config/names.py)."""
        return names.alias(model, [f"{stage}/{name}" for stage in STAGES for name in getattr(self, stage)])

    @property
    def registered_name(self) -> str:
        return self.registry.name or f"{self.data_name}-{self.threat}"

    @property
    def data_name(self) -> str:
        """What the data set is called: by `data.name`, else by its folder or file where the kind has any, else by its kind."""
        key = getattr(self.source.tables, "NAMED_BY", None)
        return self.splits.name or (self.splits.named(self.data[key]) if key else self.source.kind)


def load(path: Path | str = "params.yaml", recorded: bool = False) -> Config:
    """The config of a params file. `recorded`: of a run that is over, whose names may be those of its day.

    Raises Mistake with every error in it.
    """
    path = Path(path)
    raw = renamed(read(path)) if recorded else read(path)
    messages: list[str] = []
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        messages += [_message(e["loc"], e["msg"], e["input"]) for e in error.errors(include_url=False)]
    messages += names.mistakes(raw, recorded)
    if messages:
        raise Mistake(*(f"{path}: {message}" for message in messages))
    return config


def renamed(raw: dict[str, Any]) -> dict[str, Any]:
    """The tables of a run that is over, with the keys of today: `cleaned` was called `augmentation`, and a curve had `radii`, up to 0.1."""
    for suite in suites.values() if isinstance(suites := raw.get("suites"), dict) else ():
        if isinstance(suite, dict) and isinstance(curve := suite.get("curve"), dict) and "radii" in curve:
            eps = Threat.model_validate(raw.get("threat")).eps
            curve["times"] = [radius / eps for radius in Curve.model_validate(curve | {"times": curve.pop("radii")}).times]
    for stage in STAGES:
        for entry in table.values() if isinstance(table := raw.get(stage), dict) else ():
            if isinstance(entry, dict) and isinstance(entry.get("augmentation"), dict):
                entry["cleaned"] = entry.pop("augmentation")
    return raw


def _message(loc: tuple[str | int, ...], message: str, value: Any) -> str:
    got = "nothing" if isinstance(value, dict) and message.startswith("Field required") else repr(value)
    what, _, advice = message.partition(". ")
    return f"{'.'.join(map(str, loc))}: {what[0].lower() + what[1:]} (got {got[:80]}). {advice}".rstrip()
