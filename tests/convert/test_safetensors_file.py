"""Our files are read by the library, and the other way round; damage is named."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mtp_jax.convert.safetensors_file import INDEX, Info, SafetensorsWriter, open_file, open_folder

RANDOM = np.random.default_rng(0)
ARRAYS = {"a": RANDOM.standard_normal((3, 4)).astype(np.float32), "b": RANDOM.standard_normal(5).astype(np.float16),
          "c": np.arange(6, dtype=np.int64).reshape(2, 3), "d": RANDOM.standard_normal((2, 2, 2)),
          "e": np.array(2.5, np.float32), "f": np.zeros((0, 3), np.float32)}


def write(folder, arrays, **options):
    infos = {name: Info(array.shape, array.dtype) for name, array in arrays.items()}
    with SafetensorsWriter(folder, infos, **options) as writer:
        for name in reversed(arrays):  # any order
            writer.write(name, arrays[name])


def check(found, arrays):
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_the_library_reads_ours(tmp_path):
    write(tmp_path, ARRAYS, metadata={"who": "us"})
    check(load_file(tmp_path / "model.safetensors"), ARRAYS)
    assert open_folder(tmp_path).metadata == {"format": "pt", "who": "us"}


def test_we_read_the_librarys(tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    tensors = open_folder(tmp_path)
    check({name: tensors.read(name) for name in tensors.infos}, ARRAYS)


def test_bfloat16_and_transposed_arrays(tmp_path):
    arrays = {"x": RANDOM.standard_normal((40, 30)).astype(ml_dtypes.bfloat16),
              "y": RANDOM.standard_normal((300, 40)).astype(np.float32).T}
    write(tmp_path, arrays)
    tensors = open_folder(tmp_path)
    check({name: tensors.read(name) for name in tensors.infos}, arrays)
    from safetensors.flax import load_file as load_jax

    np.testing.assert_array_equal(np.asarray(load_jax(tmp_path / "model.safetensors")["x"]), arrays["x"])


def test_shards_and_their_index(tmp_path):
    arrays = {f"t{i}": np.full((10,), i, np.float32) for i in range(5)}
    write(tmp_path, arrays, shard_bytes=100)  # two a file
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *[f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)], INDEX]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 200 and index["weight_map"]["t4"] == "model-00003-of-00003.safetensors"
    tensors = open_folder(tmp_path)
    check({name: tensors.read(name) for name in tensors.infos}, arrays)
    check({name: value for file in set(index["weight_map"].values())
           for name, value in load_file(tmp_path / file).items()}, arrays)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks model-00002-of-00003.safetensors"):
        open_folder(tmp_path)


def test_what_was_not_announced_or_never_came(tmp_path):
    infos = {"a": Info((2,), np.dtype(np.float32))}
    with pytest.raises(ValueError, match="never came"):
        with SafetensorsWriter(tmp_path, infos):
            pass
    with pytest.raises(ValueError, match="announced as float32"):
        with SafetensorsWriter(tmp_path, infos) as writer:
            writer.write("a", np.zeros(3, np.float32))


@pytest.mark.parametrize("length", [0, 5, 9, 60, -1])
def test_a_truncated_file_is_named(tmp_path, length):
    write(tmp_path, ARRAYS)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:length])
    with pytest.raises(ValueError, match=r"model\.safetensors .*(cut off|cannot be read)"):
        open_file(path)


@pytest.mark.parametrize("old, new", [(b'"F32"', b'"X32"'), (b"[3,4]", b"[3,5]"),
                                      (b'"data_offsets"', b'"data_offsetz"'), (b'{"__m', b'["__m')])
def test_a_damaged_header_is_named(tmp_path, old, new):
    write(tmp_path, ARRAYS)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    with pytest.raises(ValueError, match="model.safetensors"):
        open_file(path)


@pytest.mark.parametrize("facts", [
    ("F32", [2.0], [0, 8]), ("F32", [-2, -1], [0, 8]), (["F32"], [2], [0, 8]), ("F32", "2", [0, 8]), ("F32", 2, [0, 8]),
    ("F32", [2], ["0", "8"]), ("F32", [2], [0, 8, 9]), ("F32", [2], None), ("F32", [True], [0, 4])])
def test_made_up_facts_of_a_tensor_are_refused(tmp_path, facts):
    text = json.dumps({"a": dict(zip(("dtype", "shape", "data_offsets"), facts))}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ValueError, match="x.safetensors(: a has the dtype| is no safetensors file: its header)"):
        open_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"__metadata__": [1]}', b'{"a": 3}', b"[1]", b"\xff"])
def test_made_up_headers_are_refused(tmp_path, text):
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match="x.safetensors is no safetensors file: its header"):
        open_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize("file", ["../x.safetensors", "/x.safetensors", 3, [1], ""])
def test_an_index_that_leads_elsewhere_is_refused(tmp_path, file):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(ValueError, match="index.json is damaged .*no name of a file"):
        open_folder(tmp_path)


def test_a_folder_without_tensors(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="neither model.safetensors .* runs code"):
        open_folder(tmp_path)
