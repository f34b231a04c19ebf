import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
from drawn_bundle import draw_bundle
from drawn_imports import drawn_import
from obstore.store import LocalStore, MemoryStore

from models.bundle import open_bundle
from models.champions import Champions
from models.errors import BundleError, ConflictError, RegistryError
from models.outcomes import Attempt, Outcomes
from models.registry import open_registry, resolve
from models.registry_store import ObjectStore

LABELS, OTHERS = "ab" * 32, "cd" * 32


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return [draw_bundle(folder / str(seed), seed) for seed in range(3)]


@pytest.fixture(params=["folder", "objects"])
def registry(request, tmp_path):
    """An empty registry in a folder, or in an object store."""
    place = tmp_path / "registry" if request.param == "folder" else ObjectStore(MemoryStore(), "memory://models")
    cache = tmp_path / "cache"
    return open_registry(place, create=True, cache=cache)


def crown(registry, bundle, **more):
    champion = registry.champion()
    expected = champion.digest if champion else None
    return registry.promote(bundle.digest, **{"by": "ann", "why": "better", "expected": expected, **more})


def test_a_bundle_comes_back_by_its_digest_or_its_beginning_byte_for_byte(registry, bundles):
    for bundle in bundles:
        registry.add(bundle, item={"properties": {"created": "2026"}}, files={"report.html": b"<p>"})
    first = bundles[0]
    for name in (first.digest, first.digest[:10]):
        found = registry.bundle(name)
        assert (found.digest, found.path != first.path) == (first.digest, True)
        assert (found.path / "weights.safetensors").read_bytes() == (first.path / "weights.safetensors").read_bytes()
    assert sorted(entry.digest for entry in registry.bundles()) == sorted(bundle.digest for bundle in bundles)
    assert (registry.bundles()[0].name, registry.bundles()[0].accepted) == ("drawn", None)
    assert registry.store.read(f"bundles/{first.digest}/report.html").content == b"<p>"


def test_an_imported_network_comes_back_too(registry, tmp_path):
    bundle = drawn_import(tmp_path / "b")
    registry.add(bundle)
    found = registry.bundle(bundle.digest)
    assert found.network.read_bytes() == bundle.network.read_bytes()
    with pytest.raises(RegistryError, match=r"network\.onnx' cannot lie beside"):
        registry.add(bundle, files={"network.onnx": b""})


def test_adding_again_adds_what_is_told_and_nothing_else(registry, bundles):
    registry.add(bundles[0])
    before = registry.store.list("")
    registry.add(bundles[0], gate={"accepted": False})
    assert set(registry.store.list("")) - set(before) == {f"bundles/{bundles[0].digest}/gate.json"}
    assert registry.bundles()[0].accepted is False


def test_a_bundle_is_not_there_before_its_last_file(registry, bundles):
    for name in ("spec.json", "weights.safetensors"):
        registry.store.put(f"bundles/{bundles[0].digest}/{name}", bundles[0].path / name)
    assert registry.bundles() == []
    with pytest.raises(RegistryError, match="holds no bundle"):
        crown(registry, bundles[0])
    registry.add(bundles[0])
    assert [entry.digest for entry in registry.bundles()] == [bundles[0].digest]


def test_a_changed_byte_is_refused_and_adding_mends_it(tmp_path, bundles):
    registry = open_registry(tmp_path, create=True)
    registry.add(bundles[0])
    weights = tmp_path / "bundles" / bundles[0].digest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match="has changed"):
        registry.bundle(bundles[0].digest)
    registry.add(bundles[0])
    assert registry.bundle(bundles[0].digest).digest == bundles[0].digest


def test_beginnings_must_fit_one_bundle_alone(registry, bundles):
    for bundle in bundles:
        registry.add(bundle)
    for digit in "0123456789abcdef":
        fitting = [bundle.digest for bundle in bundles if bundle.digest.startswith(digit)]
        if len(fitting) == 1:
            assert registry.find(digit) == fitting[0]
        else:
            with pytest.raises(RegistryError, match="begin with" if fitting else "holds no bundle"):
                registry.find(digit)


@pytest.mark.parametrize("name", ["../../etc", "", "AB", "g" * 64, "a" * 63 + "/"])
def test_what_is_no_digest_reaches_no_file(registry, name):
    for ask in (registry.find, registry.bundle, registry.sealed, registry.outcome, registry.holds):
        with pytest.raises(RegistryError, match=r"is no (digest|fingerprint)"):
            ask(name)


def test_files_beside_a_bundle_have_plain_names(registry, bundles):
    for name in ("../report.html", "weights.safetensors", "bundle.json", ".hidden"):
        with pytest.raises(RegistryError, match="another name"):
            registry.add(bundles[0], files={name: b""})


def test_the_champion_is_who_was_promoted_last_and_the_history_says_why(registry, bundles):
    a, b, _ = bundles
    registry.add(a), registry.add(b)
    assert (registry.champion(), registry.history()) == (None, [])
    crown(registry, a, why="first", labels=LABELS)
    crown(registry, b, by="bob", why="better")
    assert [(c.digest, c.by, c.why, c.replaced, c.labels) for c in registry.history()] == [
        (a.digest, "ann", "first", None, LABELS),
        (b.digest, "bob", "better", a.digest, None),
    ]
    assert registry.champion() == registry.history()[-1]


def test_promoting_the_champion_changes_nothing(registry, bundles):
    registry.add(bundles[0])
    assert crown(registry, bundles[0]) == crown(registry, bundles[0], why="again", expected=None)
    assert len(registry.history()) == 1


def test_a_promotion_that_saw_another_champion_is_refused(registry, bundles):
    a, b, c = bundles
    for bundle in bundles:
        registry.add(bundle)
    crown(registry, a)
    crown(registry, b)
    with pytest.raises(ConflictError, match=f"is {b.digest[:12]} by now, not {a.digest[:12]}"):
        crown(registry, c, expected=a.digest)
    with pytest.raises(ConflictError, match="not nobody"):
        crown(registry, c, expected=None)
    assert registry.champion().digest == b.digest


def test_rolling_back_undoes_one_promotion_after_the_other(registry, bundles):
    for bundle in bundles:
        registry.add(bundle)
        crown(registry, bundle, labels=bundle.digest)
    a, b, c = (bundle.digest for bundle in bundles)
    back = registry.rollback(by="bob", why="clouds")
    assert (back.digest, back.replaced, back.labels, back.why, back.kind) == (b, c, b, "clouds", "rollback")
    assert registry.rollback(by="bob", why="still").digest == a
    with pytest.raises(RegistryError, match="has replaced nobody"):
        registry.rollback(by="bob", why="more")
    crown(registry, bundles[2])
    assert registry.rollback(by="bob", why="no").digest == a
    assert [reign.digest for reign in registry.history()] == [a, b, c, b, a, c, a]


def test_a_write_that_saw_an_older_file_conflicts(registry):
    registry.store.write("x.json", b"1", None)
    seen = registry.store.read("x.json").version
    registry.store.write("x.json", b"2", seen)
    for version in (seen, None):
        with pytest.raises(ConflictError, match="somebody else replaced x"):
            registry.store.write("x.json", b"3", version)
    assert registry.store.read("x.json").content == b"2"


def test_outcomes_are_settled_by_a_verdict_or_by_three_failures(registry):
    assert (registry.outcome(LABELS), registry.settled(LABELS)) == (None, False)
    for failures in (1, 2, 3):
        registry.record(LABELS, Attempt("running"))
        registry.record(LABELS, Attempt("failed", "no disk"))
        assert (registry.outcome(LABELS).failures, registry.settled(LABELS)) == (failures, failures == 3)
    for state in ("promoted", "refused", "waiting"):
        registry.record(state.encode().hex(), Attempt(state, bundle="c" * 64))
        assert registry.settled(state.encode().hex())
    assert [outcome.state for outcome in registry.outcomes()] == ["promoted", "refused", "waiting", "failed"]


def test_only_what_is_recorded_as_failed_is_a_failure(registry):
    for state in ("running", "cancelled", "running", "failed", "running", "failed", "running", "cancelled"):
        registry.record(LABELS, Attempt(state))
    assert (registry.outcome(LABELS).failures, registry.settled(LABELS)) == (2, False)
    registry.record(LABELS, Attempt("running"))
    assert (registry.outcome(LABELS).failures, registry.settled(LABELS)) == (2, False)


def test_who_wants_another_try_gets_three_more(registry):
    for _ in range(3):
        registry.record(LABELS, Attempt("failed", "no disk"))
    assert registry.settled(LABELS)
    outcome = registry.retry(LABELS[:8], by="ann", why="a larger disk")
    assert (outcome.state, outcome.failures, registry.settled(LABELS)) == ("retry", 0, False)
    assert outcome.attempts[-1].reason == "another try wanted by ann: a larger disk"
    for failures in (1, 2, 3):
        registry.record(LABELS, Attempt("failed", "no disk"))
        assert (registry.outcome(LABELS).failures, registry.settled(LABELS)) == (failures, failures == 3)


def test_what_was_refused_is_tried_again_where_somebody_wants_it(registry):
    for labels in (LABELS, "abcd" * 16):
        registry.record(labels, Attempt("refused", "worse", "c" * 64))
    with pytest.raises(RegistryError, match="2 outcomes begin with ab"):
        registry.retry("ab", by="ann")
    with pytest.raises(RegistryError, match=r"has no outcome of labels 'ff': `widefield registry show` lists all"):
        registry.retry("ff", by="ann")
    registry.retry("aba", by="ann")
    assert (registry.settled(LABELS), registry.settled("abcd" * 16)) == (False, True)


def test_a_waiting_challenger_becomes_champion_when_it_is_approved(registry, bundles, tmp_path):
    a, b, _ = bundles
    registry.add(a), registry.add(b)
    crown(registry, a)
    (tmp_path / "chips.zip").write_bytes(b"chips")
    sealed = registry.seal(tmp_path / "chips.zip")
    registry.record(LABELS, Attempt("waiting", "better by 0.1", b.digest, a.digest, sealed))
    assert [waiting.bundle for waiting in registry.waiting()] == [b.digest]
    champion = registry.approve(b.digest[:12], by="eve")
    assert (champion.digest, champion.by, champion.labels, champion.sealed) == (b.digest, "eve", LABELS, sealed)
    assert (registry.outcome(LABELS).state, registry.waiting()) == ("promoted", [])
    assert registry.sealed(champion.sealed).read_bytes() == b"chips"
    with pytest.raises(RegistryError, match="does not wait"):
        registry.approve(b.digest, by="eve")


def test_approval_is_refused_where_the_champion_is_not_the_one_compared_with(registry, bundles):
    for bundle in bundles:
        registry.add(bundle)
    a, b, c = bundles
    crown(registry, a)
    registry.record(LABELS, Attempt("waiting", bundle=b.digest, champion=a.digest))
    crown(registry, c)
    with pytest.raises(ConflictError, match=f"is {c.digest[:12]} by now: the next look at its labels trains anew"):
        registry.approve(b.digest, by="eve")
    registry.decline(b.digest, by="eve", why="late")
    last = registry.outcome(LABELS).attempts[-1]
    assert (last.state, last.reason, registry.champion().digest) == ("refused", "declined by eve: late", c.digest)


def test_challengers_of_a_former_champion_wait_no_longer_and_their_labels_are_learnt_again(registry, bundles):
    for bundle in bundles:
        registry.add(bundle)
    a, b, c = bundles
    crown(registry, a)
    registry.record(LABELS, Attempt("waiting", bundle=b.digest, champion=a.digest))
    registry.record(OTHERS, Attempt("waiting", bundle=c.digest, champion=a.digest))
    assert (registry.settled(LABELS), registry.settled(OTHERS)) == (True, True)
    registry.approve(b.digest, by="eve")
    assert (registry.settled(LABELS), registry.settled(OTHERS), registry.waiting()) == (True, False, [])
    with pytest.raises(ConflictError, match="trains anew"):
        registry.approve(c.digest, by="eve")
    registry.rollback(by="eve", why="clouds")
    assert ([each.bundle for each in registry.waiting()], registry.settled(OTHERS)) == ([c.digest], True)


def test_what_is_recorded_after_a_state_conflicts_where_it_is_another_by_now(registry):
    registry.record(LABELS, Attempt("waiting"))
    registry.record(LABELS, Attempt("refused"), after="waiting")
    with pytest.raises(ConflictError, match="is refused by now, not waiting"):
        registry.record(LABELS, Attempt("promoted"), after="waiting")
    with pytest.raises(ConflictError, match="is none by now, not running"):
        registry.record(OTHERS, Attempt("promoted"), after="running")
    assert (registry.outcome(LABELS).state, registry.outcome(OTHERS)) == ("refused", None)


def meanwhile(monkeypatch, kind, name, deed):
    """Do something the first time that a method of this class is called, just before it."""
    method, deeds = getattr(kind, name), [deed]

    def change(self, *arguments, **more):
        if deeds:
            deeds.pop()()
        return method(self, *arguments, **more)

    monkeypatch.setattr(kind, name, change)


@pytest.mark.parametrize(("kind", "moment"), [(Outcomes, "record"), (Champions, "crown")])
def test_of_an_approval_and_a_refusal_at_once_one_wins(registry, bundles, monkeypatch, kind, moment):
    registry.add(bundles[0])
    registry.record(LABELS, Attempt("waiting", bundle=bundles[0].digest))
    verdicts = []

    def decline():
        try:
            registry.decline(bundles[0].digest, by="eve", why="no")
            verdicts.append("declined")
        except ConflictError:
            verdicts.append("conflict")

    meanwhile(monkeypatch, kind, moment, decline)
    with contextlib.suppress(ConflictError):
        registry.approve(bundles[0].digest, by="ann")
    crowned = registry.champion() is not None
    expected = {"record": (["declined"], "refused", False), "crown": (["conflict"], "promoted", True)}
    assert (verdicts, registry.outcome(LABELS).state, crowned) == expected[moment]


def test_a_challenger_that_cannot_be_crowned_waits_as_before(registry, bundles, monkeypatch):
    for bundle in bundles:
        registry.add(bundle)
    registry.record(LABELS, Attempt("waiting", "better", bundles[0].digest))
    meanwhile(monkeypatch, Champions, "crown", lambda: crown(registry, bundles[1]))
    with pytest.raises(ConflictError, match="compare with that one"):
        registry.approve(bundles[0].digest, by="ann")
    assert registry.outcome(LABELS).attempts[-1].reason == "better"
    assert (registry.outcome(LABELS).state, registry.settled(LABELS)) == ("waiting", False)


def test_an_approval_that_was_killed_before_the_crown_is_given_again(registry, bundles):
    registry.add(bundles[0])
    registry.record(LABELS, Attempt("waiting", "better", bundles[0].digest))
    registry.record(LABELS, Attempt("promoted", "promoted by ann", bundles[0].digest))
    assert ([each.bundle for each in registry.waiting()], registry.settled(LABELS)) == ([bundles[0].digest], True)
    with pytest.raises(ConflictError, match="is promoted by now, not waiting"):
        registry.decline(bundles[0].digest, by="eve", why="no")
    assert registry.approve(bundles[0].digest, by="ann").labels == LABELS
    assert (registry.waiting(), registry.outcome(LABELS).state) == ([], "promoted")


def test_rolling_back_to_a_champion_without_sealed_ground_keeps_it(registry, bundles, tmp_path):
    registry.add(bundles[0]), registry.add(bundles[1])
    (tmp_path / "chips.zip").write_bytes(b"chips")
    sealed = registry.seal(tmp_path / "chips.zip")
    crown(registry, bundles[0])
    crown(registry, bundles[1], sealed=sealed)
    back = registry.rollback(by="eve", why="clouds")
    assert (back.digest, back.sealed) == (bundles[0].digest, sealed)


def test_sealed_chips_that_changed_are_refused(tmp_path):
    registry = open_registry(tmp_path / "registry", create=True)
    (tmp_path / "chips.zip").write_bytes(b"chips")
    digest = registry.seal(tmp_path / "chips.zip")
    registry.sealed(digest).write_bytes(b"chops")
    with pytest.raises(RegistryError, match="has changed since it was sealed"):
        registry.sealed(digest)
    with pytest.raises(RegistryError, match="cannot be read"):
        registry.sealed("0" * 64)


def promote_often(place, digests, own):
    """Make another bundle champion than the one that is, until that was won six times.

    Who finds that a rival has just crowned the very bundle that he wanted gets the rival's reign, and has not won.
    """
    registry = open_registry(place)
    for turn in range(6):
        won = None
        while won != (f"{own}", f"turn {turn}"):
            champion = registry.champion()
            seen = champion.digest if champion else None
            wanted = next(digest for digest in digests[own % 3 :] + digests if digest != seen)
            with contextlib.suppress(ConflictError):
                reign = registry.promote(wanted, by=f"{own}", why=f"turn {turn}", expected=seen)
                won = (reign.by, reign.why)


def test_of_processes_that_promote_at_once_one_wins_and_the_history_has_no_gap(tmp_path, bundles):
    registry = open_registry(tmp_path, create=True)
    for bundle in bundles:
        registry.add(bundle)
    digests = [bundle.digest for bundle in bundles]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=promote_often, args=(tmp_path, digests, own)) for own in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 8
    history = registry.history()
    assert len(history) == 8 * 6
    assert sorted((reign.by, reign.why) for reign in history) == sorted(
        (f"{own}", f"turn {turn}") for own in range(8) for turn in range(6)
    )
    assert [reign.replaced for reign in history] == [None, *(reign.digest for reign in history[:-1])]


KILLED = """
import os, sys
from models.registry import open_registry
from pathlib import Path
registry = open_registry(sys.argv[1])
replace = Path.replace
def die(self, target):
    os.kill(os.getpid(), 9)
Path.replace = die
registry.promote(sys.argv[2], by="ann", why="killed", expected=None)
"""


def test_a_process_killed_between_writes_leaves_a_valid_registry(tmp_path, bundles):
    registry = open_registry(tmp_path, create=True)
    registry.add(bundles[0])
    run = subprocess.run([sys.executable, "-c", KILLED, tmp_path, bundles[0].digest], check=False)
    assert run.returncode == -signal.SIGKILL
    assert (tmp_path / "champion.json.partial").exists()
    assert registry.champion() is None
    assert crown(registry, bundles[0]).digest == bundles[0].digest


def test_stores_that_cannot_put_on_condition_are_refused(tmp_path):
    store = ObjectStore(LocalStore(tmp_path), "file://here")
    with pytest.raises(RegistryError, match="cannot replace an object on condition: two writers could both win"):
        open_registry(store, create=True)
    assert list(tmp_path.iterdir()) == []


def test_stores_that_do_not_heed_conditions_are_refused(monkeypatch):
    import obstore

    put, memory = obstore.put, MemoryStore()
    monkeypatch.setattr(obstore, "put", lambda store, name, content, **_: put(store, name, content))
    with pytest.raises(RegistryError, match="does not heed the conditions"):
        open_registry(ObjectStore(memory, "s3://careless"), create=True)
    assert obstore.list(memory).collect() == []


def test_a_bundle_from_an_object_store_is_downloaded_once_and_damage_in_the_store_is_found(tmp_path, bundles):
    registry = open_registry(ObjectStore(MemoryStore(), "memory://x"), create=True, cache=tmp_path / "cache")
    registry.add(bundles[0]), registry.add(bundles[1])
    first = registry.bundle(bundles[0].digest)
    registry.store.put(f"bundles/{first.digest}/weights.safetensors", b"gone")
    assert registry.bundle(first.digest) == first
    registry.store.put(f"bundles/{bundles[1].digest}/weights.safetensors", b"gone")
    with pytest.raises(BundleError, match="has changed"):
        registry.bundle(bundles[1].digest)


def test_what_is_no_registry_says_so(tmp_path, bundles):
    with pytest.raises(RegistryError, match="is no registry"):
        open_registry(tmp_path)
    with pytest.raises(RegistryError, match="a registry is a folder, or an address that begins with s3://"):
        open_registry("ftp://host/models")
    with pytest.raises(RegistryError, match="is a bundle"):
        open_registry(bundles[0].path, create=True)
    (tmp_path / "registry.json").write_text('{"schema": 2}')
    with pytest.raises(RegistryError, match="has schema 2: this version reads schema 1"):
        open_registry(tmp_path)
    (tmp_path / "registry.json").write_text("{")
    with pytest.raises(RegistryError, match="is damaged"):
        open_registry(tmp_path)


def test_a_registry_stands_for_its_champion_and_a_bundle_for_itself(tmp_path, bundles):
    registry = open_registry(tmp_path, create=True)
    registry.add(bundles[0])
    with pytest.raises(RegistryError, match="has no champion yet"):
        resolve(tmp_path)
    crown(registry, bundles[0])
    assert open_bundle(resolve(tmp_path)).digest == bundles[0].digest
    assert resolve(bundles[0].path) == bundles[0].path
    assert resolve(tmp_path / "nothing") == tmp_path / "nothing"


def test_what_is_written_is_json_with_a_schema(tmp_path, bundles):
    registry = open_registry(tmp_path, create=True)
    registry.add(bundles[0])
    crown(registry, bundles[0])
    registry.record(LABELS, Attempt("promoted"))
    for name in ("registry.json", "champion.json", f"outcomes/{LABELS}.json"):
        assert json.loads((tmp_path / name).read_bytes())["schema"] == 1
    assert json.loads((tmp_path / "champion.json").read_bytes())["champion"] == bundles[0].digest


def test_the_registry_loads_no_torch():
    code = "import sys, models.registry, models.mlm; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ).returncode == 0


def test_the_sealed_ground_of_the_champion_before_stays_in_force(registry, bundles, tmp_path):
    for bundle in bundles:
        registry.add(bundle)
    (tmp_path / "chips.zip").write_bytes(b"chips")
    sealed = registry.seal(tmp_path / "chips.zip")
    crown(registry, bundles[0], sealed=sealed)
    assert crown(registry, bundles[1]).sealed == sealed
    with pytest.raises(RegistryError, match="holds no sealed chips"):
        crown(registry, bundles[2], sealed="0" * 64)


def test_what_a_run_left_waiting_is_found_by_its_name(registry, bundles):
    registry.add(bundles[0], files={"labels.json": b'{"scene": "f00"}'})
    registry.record(LABELS, Attempt("running", run="r1"))
    assert registry.of_run("r1") is None
    registry.record(LABELS, Attempt("waiting", bundle=bundles[0].digest, run="r1"))
    assert (registry.waiting()[0].run, registry.of_run("r1").fingerprint) == ("r1", LABELS)
    assert (len(registry.attempts(LABELS)), registry.attempts("00" * 32)) == (2, ())
    assert registry.labels(bundles[0].digest) == {"scene": "f00"}
