from dataclasses import replace

import pytest
import torch
from drawn_chips import draw_chips

from flows.training import TrainOptions
from models.bundle import load_metrics, load_module, open_bundle
from models.config import TrainConfig
from models.errors import TrainingError, UsageError
from models.finetune import load_whole
from models.init import glorot_normal_
from models.network import network_from_spec
from models.spec import Class
from models.train import train

SMALL = {"width": 0.25, "decoder_channels": (8, 8, 8, 8, 8), "output_stride": 4, "steps": 2, "batch": 2, "crop": 32}


@pytest.fixture(scope="module")
def champion(tmp_path_factory):
    """Of two classes, with colours and codes of their own."""
    folder = tmp_path_factory.mktemp("champion")
    looks = {"colors": ("#000001", "#E4572E"), "codes": (7, 40), "licence": "CC-BY-4.0", "attribution": "them"}
    chips = draw_chips(folder / "chips.zarr")
    return train(TrainConfig(chips=chips, out=folder / "bundle", threads=1, storage="fp32", **SMALL, **looks))


def tuned(champion, folder, *, names=("ground", "square"), chips=None, **changes):
    """A training that starts from the champion; of its network it says nothing."""
    drawn = draw_chips(folder / "chips.zarr", names=names, **(chips or {}))
    config = TrainConfig(chips=drawn, out=folder / "tuned", start=champion.path, steps=1, batch=2, crop=32, threads=1)
    return replace(config, **changes)


@pytest.mark.parametrize("names", [("c0", "c1"), ("new", "c1", "c0"), ("c1", "c0", "x", "y")])
@pytest.mark.parametrize("kind", ["segment", "classify"])
def test_known_classes_keep_their_logits_whatever_their_ids(champion, tmp_path, names, kind):
    spec, edge = champion.spec, 64
    if kind == "classify":
        chips = draw_chips(tmp_path / "chips.zarr", task="classify", count=12)
        config = TrainConfig(chips=chips, out=tmp_path / "classes", task="classify", crop=64, steps=1, width=0.25)
        champion = train(replace(config, storage="fp32", threads=1))
        spec = champion.spec
    renamed = {"c0": spec.classes[0].name, "c1": spec.classes[1].name}
    names = [renamed.get(name, name) for name in names]
    classes = tuple(Class(id=i, name=name, color="#000000") for i, name in enumerate(names))
    module = network_from_spec(spec.model_copy(update={"classes": classes}))
    taken = load_whole(glorot_normal_(module, seed=1), champion, names)
    x = torch.randn(2, 3, edge, edge)
    before, after = load_module(champion)(x), module.eval()(x)
    for known in spec.classes:
        torch.testing.assert_close(after[:, names.index(known.name)], before[:, known.id])
    assert taken.endswith(", ".join(names[i] for i in range(len(names)) if names[i] not in renamed.values()) or "none")


def test_new_classes_start_from_glorot_and_no_bias(champion):
    names = ["ground", "square", "tree"]
    classes = tuple(Class(id=i, name=name, color="#000000") for i, name in enumerate(names))
    module = glorot_normal_(network_from_spec(champion.spec.model_copy(update={"classes": classes})), seed=3)
    expected = module.head.weight[2].clone()
    load_whole(module, champion, names)
    assert torch.equal(module.head.weight[2], expected)
    assert module.head.bias[2] == 0


def test_the_network_and_what_is_said_of_it_are_the_bundles(champion, tmp_path):
    bundle = train(tuned(champion, tmp_path))
    assert bundle.spec.architecture == champion.spec.architecture
    assert (bundle.spec.licence, bundle.spec.attribution) == ("CC-BY-4.0", "them")
    assert bundle.spec.derived_from == champion.digest
    assert [(c.color, c.code) for c in bundle.spec.classes] == [("#000001", 7), ("#E4572E", 40)]
    assert [(b.mean, b.std) for b in bundle.spec.bands] == [(b.mean, b.std) for b in champion.spec.bands]
    facts = load_metrics(bundle)["training"]
    assert facts["start"] == {"name": "bundle", "digest": champion.digest}
    assert facts["encoder_from"] is None


def test_a_new_class_gets_a_colour_that_none_has_and_needs_a_code_if_all_have_one(champion, tmp_path):
    config = tuned(champion, tmp_path, names=("ground", "tree", "square"))
    with pytest.raises(TrainingError, match="have codes, tree has none: give every class a code"):
        train(config)
    spec = train(replace(config, codes=(7, 50, 40))).spec
    assert [(c.name, c.color, c.code) for c in spec.classes] == [
        ("ground", "#000001", 7),
        ("tree", "#3B4252", 50),
        ("square", "#E4572E", 40),
    ]


def test_what_cannot_go_on_from_a_bundle_is_refused_with_both_named(champion, tmp_path):
    refused = {
        r"has encoder inception_v1, this training inception_v3": {"encoder": "inception_v3"},
        r"has width 0.25, this training 0.5": {"width": 0.5},
        r"was trained to segment, this training is to classify": {"task": "classify"},
        r"has decoder_channels \(8, 8, 8, 8, 8\), this training \(9,\)": {"decoder_channels": (9,)},
    }
    for message, changes in refused.items():
        with pytest.raises(TrainingError, match=message):
            train(tuned(champion, tmp_path, **changes))
    with pytest.raises(TrainingError, match="has the class square, the chips have ground, circle"):
        train(tuned(champion, tmp_path, names=("ground", "circle"), codes=(1, 2)))
    with pytest.raises(TrainingError, match="chips have b0 in DN, b1 in DN, b2 in DN as uint16"):
        train(tuned(champion, tmp_path, chips={"dtype": "uint16"}))
    with pytest.raises(TrainingError, match="the chips have 5 bands, but 3 have units"):
        train(tuned(champion, tmp_path, chips={"bands": 5}))
    with pytest.raises(UsageError, match="starts from a whole bundle or from an encoder"):
        tuned(champion, tmp_path, encoder_from=champion.path)


def test_a_checkpoint_is_of_one_start(champion, tmp_path):
    config = tuned(champion, tmp_path, steps=3, save_every=1)

    def stop(line):
        if line["step"] > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(replace(config, log_every=1), stop)
    other = train(tuned(champion, tmp_path, out=tmp_path / "other"))
    with pytest.raises(TrainingError, match="belongs to other settings or chips"):
        train(replace(config, start=other.path))
    train(config)
    assert open_bundle(config.out).spec.derived_from == champion.digest


def test_the_command_line_says_nothing_of_a_network_that_it_goes_on_with(champion, tmp_path):
    config = TrainOptions(start=champion.path, loss="focal+dice", optimizer="sgd", ema=0.9).config(tmp_path)
    assert (config.width, config.decoder_channels, config.output_stride) == (0.25, (8, 8, 8, 8, 8), 4)
    assert (config.terms, config.optimizer, config.ema, config.devices) == (("focal", "dice"), "sgd", 0.9, 1)
    with pytest.raises(TrainingError, match="has decoder unet, this training fpn: leave it out"):
        TrainOptions(start=champion.path, decoder="fpn").config(tmp_path)
    with pytest.raises(UsageError, match="--start"):
        TrainOptions(start=tmp_path / "none").config(tmp_path)
