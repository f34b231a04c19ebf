"""Our encoders beside the public modules of the same networks, with the same weights, in turn: eager, on one tile.

Both have the padding of the published network, so that they do the same work; heads are left out. The public packages
are those of `make parity`: with its folder on PYTHONPATH they are compared, without it ours alone are measured.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from models.inception import create_encoder
from models.pretrained import load_public
from models.rewrite import rewritten
from models.serve import EAGER
from tests.bench.common import record, spread, table, verdict
from tests.drawn_weights import draw_state

TILE = 512
ROUNDS = 15
WARM_UP = 2
WANTED = {"as it stands": 0.95, "rewritten": 1.0}
"""Speed of ours, that of the public module being 1."""


@dataclass(frozen=True)
class Case:
    """One network, ours and as others have published it."""

    name: str
    make: Callable[[], nn.Module]
    """The public module."""
    method: str
    """Of that module: from an image to the last map, or to its average."""
    source: str
    """Whose names its weights have."""
    network: str
    options: dict
    """Of our encoder."""


class Deepest(nn.Module):
    """An encoder's last map."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x):
        return self.encoder(x)[-1]


def _torchvision(name):
    library = torch.library.Library("torchvision", "FRAGMENT")  # its compiled operators do not load beside CPU torch
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import models

    module = getattr(models, name)(weights=None, init_weights=False, transform_input=False, aux_logits=False)
    module.fc = nn.Identity()
    return module


def _timm(name):
    import timm

    return timm.create_model(name, pretrained=False)


def _bninception():
    from pretrainedmodels.models.bninception import BNInception

    return BNInception()


def _facenet():
    from facenet_pytorch import InceptionResnetV1

    module = InceptionResnetV1(pretrained=None)
    module.last_linear = module.last_bn = nn.Identity()
    return module


def _case(name, make, method, source, network, **options):
    return Case(name, make, method, source, network, options)


CASES = (
    _case(
        "torchvision googlenet", lambda: _torchvision("googlenet"), "forward", "torchvision", "inception_v1", kernel5=3
    ),
    _case("Cadene bninception", _bninception, "features", "cadene", "inception_v2"),
    _case("torchvision inception_v3", lambda: _torchvision("inception_v3"), "forward", "torchvision", "inception_v3"),
    _case("timm inception_v3", lambda: _timm("inception_v3"), "forward_features", "timm", "inception_v3"),
    _case("timm inception_v4", lambda: _timm("inception_v4"), "forward_features", "timm", "inception_v4"),
    _case("facenet-pytorch", _facenet, "forward", "facenet", "inception_resnet_v1", variant="facenet"),
    _case(
        "timm inception_resnet_v2",
        lambda: _timm("inception_resnet_v2"),
        "forward_features",
        "timm",
        "inception_resnet_v2",
    ),
)


def run(rounds=ROUNDS):
    """Markdown: CPU milliseconds of ours, and how many times as fast as the public module they are.

    One thread, by its CPU time: where a machine has other work, helpers that wait for each other cost a factor of ten.
    """
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages as they are imported
        facts = [_fact(case, int(rounds)) for case in CASES]
    rows = [row for fact in facts for row in _rows(fact)]
    told = [(f"encoder {row[0]} {row[1]}, times as fast as {row[3]}", f"at least {row[5]}", row[4]) for row in rows]
    missing = ", ".join(fact["name"] for fact in facts if "public" not in fact["seconds"])
    record("encoders", {"threads": 1, "cases": facts}, [] if missing else told)
    text = table(["encoder", "ours", "CPU ms", "beside", "times as fast", "wanted", "reached"], rows)
    return text + (f"\nNot installed (`make parity`): {missing}.\n" if missing else "")


def _fact(case, rounds):
    ours = Deepest(create_encoder(case.network, padding="valid", **case.options)).eval()
    try:
        public = case.make().eval()
    except ImportError:
        calls = {}
    else:
        public.load_state_dict(draw_state({name: tuple(value.shape) for name, value in public.state_dict().items()}))
        load_public(ours.encoder, public.state_dict(), case.source)
        calls = {"public": getattr(public.to(memory_format=torch.channels_last), case.method)}
    calls |= {"as it stands": ours, "rewritten": rewritten(ours, 3, EAGER)}
    for module in list(calls.values())[-2:]:
        module.to(memory_format=torch.channels_last)
    return {"name": case.name, "network": case.network, "seconds": _in_turn(calls, rounds)}


@torch.inference_mode()
def _in_turn(calls, rounds):
    """CPU seconds of each call in each round; every other round goes backwards."""
    x = torch.randn(1, 3, TILE, TILE).to(memory_format=torch.channels_last)
    seconds = {name: [] for name in calls}
    for i in range(-WARM_UP, rounds):
        for name in list(calls)[:: 1 if i % 2 else -1]:
            start = time.process_time()
            calls[name](x)
            if i >= 0:
                seconds[name].append(time.process_time() - start)
    return seconds


def _rows(fact):
    """Each of ours beside the public module; without it, the rewritten one beside the other."""
    seconds = fact["seconds"]
    first, *ours = seconds if "public" in seconds else ("as it stands", "rewritten")
    beside = fact["name"] if first == "public" else first
    for name in ours:
        ratios = [theirs / mine for theirs, mine in zip(seconds[first], seconds[name], strict=True)]
        wanted = WANTED[name]
        milliseconds = spread([1e3 * value for value in seconds[name]], 0)
        reached = verdict(median(ratios), wanted, least=True)
        yield [fact["network"], name, milliseconds, beside, spread(ratios, 3), wanted, reached]
