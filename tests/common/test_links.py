"""Links of a folder: inside, into the Hub cache's blobs, out of it."""

from pathlib import Path

from mllm_jax.common.links import is_inside, link_roots


def test_links_that_stay_and_links_that_leave(tmp_path: Path) -> None:
    folder, other = tmp_path / "a", tmp_path / "ab"
    folder.mkdir()
    other.mkdir()
    (other / "x").write_text("")
    (folder / "y").write_text("")
    (folder / "out").symlink_to(other / "x")
    (folder / "in").symlink_to("y")
    roots = link_roots(folder)
    assert is_inside(str(folder / "in"), roots) and is_inside(str(folder / "absent"), roots)
    assert not is_inside(str(folder / "out"), roots), "a name may begin like the folder's"
    assert not is_inside(str(folder / ".." / "ab" / "x"), roots)
    assert is_inside(str(folder / "out"), link_roots(folder, [str(other)]))


def test_the_hubs_cache(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "0123", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "9f").write_text("")
    (repository / "secret").write_text("")
    (snapshot / "config.json").symlink_to("../../blobs/9f")
    (snapshot / "tokenizer.json").symlink_to("../../secret")
    (tmp_path / "link").symlink_to(snapshot)
    for folder in (snapshot, tmp_path / "link"):
        roots = link_roots(folder)
        assert is_inside(str(folder / "config.json"), roots)
        assert not is_inside(str(folder / "tokenizer.json"), roots)
