import pytest

from pipeline.archive import is_archive, list_archive, scene_name
from pipeline.errors import UsageError
from pipeline.scene import SceneAddress


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(listing):
    return [entry.name for entry in listing.scenes]


def test_a_folder_is_its_scenes_named_by_their_place_in_it(tmp_path):
    touch(tmp_path, "b.TIF", "deep/er/a.tiff", "c.jp2", "notes.txt")
    listing = list_archive(str(tmp_path))
    assert names(listing) == ["b", "c", "deep/er/a"]
    assert [entry.address.path for entry in listing.scenes] == [
        str(tmp_path / name) for name in ("b.TIF", "c.jp2", "deep/er/a.tiff")
    ]
    assert listing.problems == ()


def test_hidden_files_labels_results_and_the_output_folder_are_no_scenes(tmp_path):
    touch(tmp_path, "a.tif", "a-labels.tif", ".b.tif", ".widefield/c.tif", "masks/a/mask.tif", "masks/a/mask.zarr/x")
    touch(tmp_path, "out/d.tif")
    assert names(list_archive(str(tmp_path), out=tmp_path / "out")) == ["a"]


def test_every_scene_is_asked_for_as_the_pattern_says_and_a_glob_narrows(tmp_path):
    touch(tmp_path, "north/a.tif", "south/b.tif")
    listing = list_archive(str(tmp_path), match="north/*", pattern=SceneAddress("", (3, 2, 1), nodata=7))
    (entry,) = listing.scenes
    assert (entry.address.bands, entry.address.nodata) == ((3, 2, 1), 7)


@pytest.mark.parametrize(
    ("files", "good", "bad", "says"),
    [
        (["a.tif", "a.tiff", "b.tif"], ["b"], ["a"], "a.tif and a.tiff would both be written to a"),
        (["a.tif", "a/b.tif", "c.tif"], ["a", "c"], ["a/b"], "would lie in that of a"),
        (["a\nb.tif", "c.tif"], ["c"], [r"a\nb"], "control characters"),
        (["\u202ea.tif", "c.tif"], ["c"], [r"\u202ea"], "control characters"),
        (["..tif.tif", "c.tif"], ["c"], [], ""),
        (["x" * 220 + ".tif", "c.tif"], ["c"], ["x" * 220], "over 200 bytes"),
        (["archive.json.tif", "c.tif"], ["c"], ["archive.json"], "our own"),
    ],
)
def test_what_cannot_be_is_told_and_the_rest_goes_on(tmp_path, files, good, bad, says):
    touch(tmp_path, *files)
    listing = list_archive(str(tmp_path))
    assert names(listing) == good
    assert [name for name, _ in listing.problems] == bad
    assert all(says in message for _, message in listing.problems)


def test_names_that_are_not_utf8_are_told(tmp_path):
    touch(tmp_path, "a.tif", b"\xff.tif".decode(errors="surrogateescape"))
    listing = list_archive(str(tmp_path))
    assert (names(listing), len(listing.problems)) == (["a"], 1)
    assert listing.problems[0][0].isprintable()


def test_links_to_folders_are_not_followed_and_dangling_ones_are_told(tmp_path):
    touch(tmp_path, "in/a.tif")
    (tmp_path / "in" / "ring").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.tif").symlink_to(tmp_path / "nowhere.tif")
    listing = list_archive(str(tmp_path / "in"))
    assert names(listing) == ["a"]
    assert [name for name, _ in listing.problems] == ["gone"]


def test_all_that_a_plain_raster_may_be_called_is_found(tmp_path):
    for name in ("a.tif", "b.GTIFF", "c.webp", "d.j2k", "e.svs", "f.txt", "g.tif.aux.xml"):
        touch(tmp_path, name)
    assert [scene.name for scene in list_archive(str(tmp_path)).scenes] == ["a", "b", "c", "d", "e"]


def test_a_changed_file_has_another_fingerprint(tmp_path):
    touch(tmp_path, "a.tif")
    before = list_archive(str(tmp_path)).scenes[0].fingerprint
    assert list_archive(str(tmp_path)).scenes[0].fingerprint == before
    (tmp_path / "a.tif").write_bytes(b"more")
    assert list_archive(str(tmp_path)).scenes[0].fingerprint != before


@pytest.mark.parametrize("archive", ["none", "nope://bucket/folder", "memory://nothing-there"])
def test_an_archive_that_is_none_is_refused(tmp_path, archive):
    with pytest.raises(UsageError, match=r"no such file|cannot be listed|nothing is there"):
        list_archive(str(tmp_path / archive) if "://" not in archive else archive)


def test_a_folder_or_an_address_without_a_suffix_means_many_scenes(tmp_path):
    assert is_archive(str(tmp_path))
    assert is_archive("s3://bucket/prefix")
    assert not is_archive("https://host/scene.tif")
    assert not is_archive("https://host/scene.webp")
    assert not is_archive("https://host/scene.scene.json")
    assert is_archive("https://host/catalog.json?token=a")
    assert not is_archive(str(tmp_path / "scene.tif"))


def test_a_signed_address_is_one_scene_called_by_its_file():
    signed = "https://host/north/scene.tif?key=a/b.c&until=1"
    assert not is_archive(signed)
    assert [scene_name(name) for name in (signed, "a/b.c.tif", "a/why?.tif")] == ["scene", "b.c", "why?"]
