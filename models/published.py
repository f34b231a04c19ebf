"""Public weights of the Inception family that are known here: where they lie, what they are, what they expect.

Nothing is downloaded from here and no torch is imported: `pipeline.download` fetches, `models.pretrained` loads.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from types import MappingProxyType
from typing import Literal

from models.errors import WeightsError

Source = Literal["torchvision", "timm", "cadene", "facenet", "smp"]
"""Who released a file: it decides how its tensors are named, and in which order it takes red, green and blue."""
Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class Normalisation:
    """What is subtracted from red, green and blue, and what divides them then, in 0 to 255."""

    mean: Rgb
    std: Rgb


HALF = Normalisation((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
"""To -1 ... 1, as TensorFlow's networks and all ports of them have it; torchvision turns its own input into this."""
IMAGENET = Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
CAFFE = Normalisation((128.0, 117.0, 104.0), (1.0, 1.0, 1.0))
"""Published for blue, green, red; here in the order of the kernels that `load_public` has turned."""
FACENET = Normalisation((127.5, 127.5, 127.5), (128.0, 128.0, 128.0))


@dataclass(frozen=True)
class Published:
    """One published file."""

    name: str
    """How it is called here: the network and the tag of its training."""
    network: str
    source: Source
    """Who released it, as `load_public` takes it."""
    urls: tuple[str, ...]
    """Where it lies; tried in this order."""
    file: str
    """Name under which it is stored."""
    variant: Mapping[str, bool | int | str] = field(default_factory=dict)
    """Options of the network that these weights need, as `create_encoder` takes them."""
    sha256: str = ""
    """First digits of the file's checksum, as many as its published name carries; empty where none is known."""
    classes: int | None = 1000
    """Rows of its classifier, with the background if it has one; None: encoder only."""
    licence: str = ""
    """As stated by who released it; of the code where nothing is said about the weights."""
    normalisation: Normalisation = HALF
    input_size: int = 299
    """Edge of the images in training, in pixels."""
    aliases: tuple[str, ...] = ()
    """Names of other files with the same weights: an older release, a copy."""

    def __str__(self) -> str:
        return self.name


def find(name: str) -> Published:
    """The entry called `name`.

    Raises:
        WeightsError: there is none.
    """
    if name not in PUBLISHED:
        raise WeightsError(f"no published weights are called {name!r}: choose one of {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


def guess(file: PurePath | str) -> Published | None:
    """The entry that a file belongs to, by its name alone; None where its name says nothing."""
    name = PurePath(file).name
    for entry in PUBLISHED.values():
        if name in {entry.file, *entry.aliases} or PurePath(name).stem == entry.name:
            return entry
    return None


def _torchvision(network: str, file: str) -> Published:
    return Published(
        f"{network}.tv_in1k",
        network,
        "torchvision",
        (f"https://download.pytorch.org/models/{file}",),
        file,
        sha256=_digits(file),
        licence="code BSD-3-Clause, weights not stated",
    )


def _timm(network: str, tag: str) -> Published:
    return Published(
        f"{network}.{tag}",
        network,
        "timm",
        (f"https://huggingface.co/timm/{network}.{tag}/resolve/main/model.safetensors",),
        f"{network}.{tag}.safetensors",
        licence="Apache-2.0",
    )


def _cadene(network: str, file: str) -> Published:
    return Published(
        f"{network}.cadene_in1k",
        network,
        "cadene",
        (f"http://data.lip6.fr/cadene/pretrainedmodels/{file}",),
        file,  # whose digits are said to be of its SHA-256 by nobody
        classes=1001,
        licence="code BSD-3-Clause, weights not stated",
    )


def _smp(network: str, repository: str, revision: str) -> Published:
    return Published(
        f"{network}.smp_in1k",
        network,
        "smp",
        (f"https://huggingface.co/smp-hub/{repository}/resolve/{revision}/model.safetensors",),
        f"{network}.smp_in1k.safetensors",
        classes=None,
        licence="code MIT, weights not stated",
    )


def _facenet(tag: str, file: str, classes: int) -> Published:
    return Published(
        f"inception_resnet_v1.{tag}",
        "inception_resnet_v1",
        "facenet",
        (f"https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/{file}",),
        file,
        variant={"variant": "facenet"},
        classes=classes,
        licence="code MIT, weights not stated",
        normalisation=FACENET,
        input_size=160,
    )


def _digits(file: str) -> str:
    """The checksum's first digits, where a name ends in them: `googlenet-1378be20.pth`."""
    found = re.search(r"-([0-9a-f]{8,64})\.\w+$", file)
    return found[1] if found else ""


_SLIM: Mapping[str, bool | int | str] = {"count_include_pad": False}
"""Straight ports of TF-slim's network, whose averages leave the padding out."""
_OLDER_V3 = ("inception_v3_google-1a9a5a14.pth", "inception_v3.tv_in1k.safetensors")
"""torchvision's older release, and timm's copy of it."""

_ENTRIES = (
    replace(_torchvision("inception_v1", "googlenet-1378be20.pth"), variant={"kernel5": 3}, input_size=224),
    replace(_cadene("inception_v2", "bn_inception-52deb4733.pth"), classes=1000, normalisation=CAFFE, input_size=224),
    replace(_torchvision("inception_v3", "inception_v3_google-0cc3c7bd.pth"), aliases=_OLDER_V3),
    replace(_timm("inception_v3", "tf_in1k"), variant=_SLIM),
    replace(_timm("inception_v3", "tf_adv_in1k"), variant=_SLIM),
    replace(_timm("inception_v3", "gluon_in1k"), normalisation=IMAGENET),
    _timm("inception_v4", "tf_in1k"),
    _cadene("inception_v4", "inceptionv4-8e4777a0.pth"),
    _smp("inception_v4", "inceptionv4.imagenet", "918fb54f07811d82a4ecde3a51156041d0facba9"),
    _facenet("vggface2", "20180402-114759-vggface2.pt", 8631),
    _facenet("casia_webface", "20180408-102900-casia-webface.pt", 10575),
    _timm("inception_resnet_v2", "tf_in1k"),
    _timm("inception_resnet_v2", "tf_ens_adv_in1k"),
    _cadene("inception_resnet_v2", "inceptionresnetv2-520b38e4.pth"),
    _smp("inception_resnet_v2", "inceptionresnetv2.imagenet", "120c5afdbb80a1c989db0a7423ebb7a9db9b1e6c"),
)
PUBLISHED: Mapping[str, Published] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Every published file that is known, by its name here."""
