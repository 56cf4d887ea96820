"""Where a published data set lies."""

from pydantic import Field

from basin.config.settings import Settings


class Place(Settings):
    """Where the files are."""

    folder: str = Field(min_length=1, description="the folder with the published files, or torchvision's root")
    download: bool = Field(False, description="whether torchvision may fetch what is absent into `folder`, over the network")
