"""Files of torch.save without torch: what they may name, and what is not whole. tests/interop has torch read them."""

import io
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from mtp_jax.convert.pth import PthWriter, open_pth


def write(path, tensors):
    with PthWriter(path) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    return path


def repack(path, change):
    """Writes the archive again; `change` maps (name, bytes) to bytes, or None to leave it out."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            if (data := change(name.partition("/")[2], data)) is not None:
                archive.writestr(name, data)
    return path


def test_tensors_come_back(tmp_path):
    random = np.random.default_rng(0)
    tensors = {"a.weight": random.standard_normal((3, 5)).astype(np.float32), "b": np.float16(random.random(7)),
               "c": random.standard_normal((2, 3, 4)).astype(ml_dtypes.bfloat16), "d": random.random((4, 2)).T,
               "é": np.arange(3), "empty": np.zeros((0, 4), np.float32), "scalar": np.array(2.5, np.float32)}
    found = open_pth(write(tmp_path / "x.pth", tensors))
    assert list(found.infos) == list(tensors)
    for name, tensor in tensors.items():
        assert found.infos[name].dtype == tensor.dtype and found.infos[name].shape == tensor.shape
        assert found.read(name).tobytes() == tensor.tobytes(), name


class Harmful:
    """Runs a command when it is unpickled."""

    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return os.system, (f"touch {self.made}",)


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path):
    made = tmp_path / "made"
    data = pickle.dumps({"tok_embeddings.weight": Harmful(made)}, protocol=2)
    path = repack(write(tmp_path / "x.pth", {"a": np.zeros(2, np.float32)}), lambda name, old: data
                  if name == "data.pkl" else old)
    with pytest.raises(ValueError, match=rf"x.pth names {os.system.__module__}.system in its pickle.*refused"):
        open_pth(path)
    assert not made.exists()
    pickle.Unpickler(io.BytesIO(data)).load()
    assert made.exists(), "the file is harmless, so nothing was tested"


@pytest.mark.parametrize("module, name", [("builtins", "eval"), ("torch", "load"), ("torch.nn", "Linear"),
                                          ("os.path", "join"), ("collections", "namedtuple")])
def test_whatever_else_a_pickle_names_is_refused(tmp_path, module, name):
    data = f"c{module}\n{name}\n.".encode()
    path = repack(write(tmp_path / "x.pth", {"a": np.zeros(2, np.float32)}), lambda entry, old: data
                  if entry == "data.pkl" else old)
    with pytest.raises(ValueError, match=f"names {module}.{name} in its pickle"):
        open_pth(path)


@pytest.mark.parametrize("change, message", [
    (lambda name, data: None if name == "data.pkl" else data, "without data.pkl"),
    (lambda name, data: data[:-1] if name == "data/0" else data, "needs 8 bytes of data/0, which has 7"),
    (lambda name, data: None if name == "data/0" else data, "needs 8 bytes of data/0, which has 0"),
    (lambda name, data: data[:20] if name == "data.pkl" else data, "data.pkl is damaged"),
    (lambda name, data: b"big" if name == "byteorder" else data, "big-endian"),
    (lambda name, data: pickle.dumps([1], 2) if name == "data.pkl" else data, "holds a list and no dict of tensors"),
    (lambda name, data: pickle.dumps({"a": 1}, 2) if name == "data.pkl" else data, "a is a int and no tensor")])
def test_files_that_are_not_whole(tmp_path, change, message):
    path = repack(write(tmp_path / "x.pth", {"a": np.zeros(2, np.float32)}), change)
    with pytest.raises(ValueError, match=message):
        open_pth(path)


def test_files_that_are_none(tmp_path):
    path = write(tmp_path / "x.pth", {"a": np.zeros(100, np.float32)})
    data = path.read_bytes()
    for part in (data[:len(data) // 2], b"", b"\x80\x02."):
        path.write_bytes(part)
        with pytest.raises(ValueError, match=rf"x.pth \({len(part)} bytes\) is no zip archive"):
            open_pth(path)
    for name in ("data/0", "data.pkl"):  # a pickle of ten megabytes could become ten gigabytes
        with zipfile.ZipFile(path, "w") as archive:
            for entry in ("data/0", "data.pkl"):
                archive.writestr(f"archive/{entry}", b"}." * 1000,
                                 zipfile.ZIP_DEFLATED if entry == name else zipfile.ZIP_STORED)
        with pytest.raises(ValueError, match=f"{name} is compressed, which torch.save never does"):
            open_pth(path)


def pickled(tensor):
    """Returns data.pkl of {"a": tensor} by protocol 0, `tensor` being the arguments of _rebuild_tensor_v2."""
    return f"(dVa\nctorch._utils\n_rebuild_tensor_v2\n({tensor}tRs.".encode()


STORAGE = "(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI2\ntQ"


@pytest.mark.parametrize("data, message", [
    (pickled(STORAGE + "I1\n(I2\nt(I1\nt"), r"\[2\] from byte 4 on, needs 12 bytes of data/0, which has 8"),
    (pickled(STORAGE + "I-1\n(I2\nt(I1\nt"), "from byte -4 on"),
    (pickled(STORAGE + "I0\n(I-2\nI-1\nt(I1\nI1\nt"), "the file is damaged|does not lie as one block"),
    (pickled(STORAGE + "I0\n(I2\nt(I3\nt"), r"strides \[3\]"), (pickled(STORAGE + "I0\n(I2\nt(t"), r"strides \[\]"),
    (pickled("I3\nI0\n(I2\nt(I1\nt"), "has no storage"), (pickled("(Vstorage\ntQI0\n(I2\nt(I1\nt"), "no storage"),
    (pickled(STORAGE + "I0\n(Vx\nt(I1\nt"), "damaged"),
    # What may be named is not to be changed: a dtype, a tensor.
    (b"ctorch\nFloatStorage\n(I3\nV>\ntb.", "damaged"),
    (pickled(STORAGE + "I0\n(I2\nt(I1\nt").replace(b"tRs.", b"tR(dVshape\n(I9\ntsbs."), "damaged"),
    (b"]r\xff\xff\xff\x7f.", r"LONG_BINPUT 2147483647 in a pickle of 7 bytes"),
    (b"\x8e" + b"\xff" * 8 + b"x.", "damaged"), (b"(" * 100 + b"l" * 99 + b".", "no dict|damaged")])
def test_pickles_that_are_made_up(tmp_path, data, message):
    path = repack(write(tmp_path / "x.pth", {"a": np.zeros(2, np.float32)}), lambda entry, old: data
                  if entry == "data.pkl" else old)
    with pytest.raises(ValueError, match=rf"x\.pth.*({message})"):
        open_pth(path)


def test_archives_that_are_made_up(tmp_path):
    path = write(tmp_path / "x.pth", {"a": np.zeros(2, np.float32)})
    data = path.read_bytes()
    place = data.index(b"PK\x01\x02")
    for offset, new, message in ((8, b"\x01", "is encrypted"), (10, b"\x63", "is compressed"),
                                 (42, b"\x07", "is no zip archive.*archive says"), (6, b"\xff", "no zip archive")):
        path.write_bytes(data[:place + offset] + new + data[place + offset + 1:])
        with pytest.raises(ValueError, match=message):
            open_pth(path)
    path.write_bytes(data)
    inner = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/consolidated.pth", inner)
    with pytest.raises(ValueError, match="a zip archive without data.pkl"):
        open_pth(path)
