"""Cached libraries are the user's own and have the content that was built; a cache that cannot be used is said."""

import os
import shutil

import pytest

from kvbench.kernels import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")


@pytest.fixture
def source(tmp_path, private_cache):
    file = tmp_path / "tiny.cpp"
    file.write_text('extern "C" int answer(long n) { return (int)n + 1; }\n')
    yield file
    build.load.cache_clear()


def answer(source) -> int:
    build.load.cache_clear()
    library = build.load(source)
    assert library is not None
    return library.answer(41)


def test_a_library_is_kept_and_its_name_has_the_hash_of_its_content(source, private_cache, monkeypatch):
    assert answer(source) == 42
    (kept,) = (private_cache / "kernels").glob("*.so")
    assert kept.stem.endswith(build._hash(kept))
    monkeypatch.setattr(build, "_build", lambda *_: pytest.fail("built again"))
    assert answer(source) == 42


@pytest.mark.parametrize("spoil", ["content", "cut", "writable", "link"])
def test_what_is_not_as_it_was_built_is_built_again(source, private_cache, tmp_path, spoil):
    assert answer(source) == 42
    (kept,) = (private_cache / "kernels").glob("*.so")
    content = kept.read_bytes()
    # not into the file that this process has loaded
    kept.unlink()
    kept.write_bytes({"content": b"x" + content[1:], "cut": content[:100]}.get(spoil, content))
    if spoil == "writable":
        kept.chmod(0o777)
    elif spoil == "link":
        shutil.move(kept, tmp_path / "elsewhere.so")
        kept.symlink_to(tmp_path / "elsewhere.so")
    assert answer(source) == 42
    (again,) = (private_cache / "kernels").glob("*.so")
    assert not again.is_symlink() and not again.stat().st_mode & 0o022
    assert again.stem.endswith(build._hash(again))


def test_a_folder_of_another_user_is_not_used(source, private_cache, monkeypatch):
    (private_cache / "kernels").mkdir(parents=True)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.warns(UserWarning, match=r"cannot be kept in .*another user.*KVBENCH_CACHE"):
        assert answer(source) == 42
    assert not list((private_cache / "kernels").iterdir())


def test_a_folder_that_others_can_write_is_closed_to_them(source, private_cache):
    (private_cache / "kernels").mkdir(parents=True)
    (private_cache / "kernels").chmod(0o777)
    assert answer(source) == 42
    assert not (private_cache / "kernels").stat().st_mode & 0o022


def test_a_cache_that_cannot_be_written_is_said_and_kernels_are_there(source, private_cache):
    private_cache.write_text("a file")
    with pytest.warns(UserWarning, match="cannot be kept in"):
        assert answer(source) == 42
