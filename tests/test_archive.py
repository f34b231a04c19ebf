import pytest

from pipeline.archive import list_scenes
from pipeline.errors import UsageError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_file_is_one_scene_named_after_its_stem(tmp_path):
    touch(tmp_path, "deep/a.tif")
    assert list_scenes(tmp_path / "deep" / "a.tif") == [(tmp_path / "deep" / "a.tif", "a")]


def test_a_folder_is_its_scenes_named_by_their_place_in_it(tmp_path):
    touch(tmp_path, "b.TIF", "deep/er/a.tiff", "notes.txt")
    assert [name for _, name in list_scenes(tmp_path)] == ["b", "deep/er/a"]


def test_hidden_files_labels_and_results_are_no_scenes(tmp_path):
    touch(tmp_path, "a.tif", "a-labels.tif", ".b.tif", ".widefield/c.tif", "masks/a/mask.tif", "masks/a/mask.zarr/x")
    assert [name for _, name in list_scenes(tmp_path)] == ["a"]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a.tif", "a.tiff"], r"a\.tif and a\.tiff would both be written to a"),
        (["a.tif", "a/b.tif"], r"the result of a\.tif would hold that of a/b"),
        (["notes.txt"], r"holds no scene: looked for \.tif, \.tiff"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, names, says):
    touch(tmp_path, *names)
    with pytest.raises(UsageError, match=says):
        list_scenes(tmp_path)


def test_nothing_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        list_scenes(tmp_path / "none")
