"""Runs a model that mtp_jax exported as StableHLO, with jax (and flatbuffers, which its export reads files with) alone.

    python load.py 64 256 100 101 102      64 tokens behind these ids; --plain before them decodes without drafts
"""
import hashlib
import json
import pathlib
import sys

import jax.export
import numpy as np

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Model:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        raw = np.memmap(self.folder / self.manifest["params"], np.uint8, "r")  # safetensors: length, header, numbers
        start = 8 + int(raw[:8].view(np.int64)[0])
        header = json.loads(raw[8:start].tobytes())
        self.params = {name: jax.device_put(raw[start + at["data_offsets"][0]:start + at["data_offsets"][1]].view(
            jax.numpy.dtype(DTYPES[at["dtype"]])).reshape(at["shape"])) for name, at in header.items() if "dtype" in at}
        self.functions = {name: self.load(name) for name in self.manifest["functions"]}

    def load(self, name):
        facts = self.manifest["functions"][name]
        data = (self.folder / facts["file"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.manifest["files"][facts["file"]]["sha256"]:
            raise ValueError(f"{self.folder / facts['file']} is damaged: copy it again.")
        run, params = jax.export.deserialize(bytearray(data)).call, {n: self.params[n] for n in facts["params"]}
        jitted, keep = jax.jit(run), facts["inputs"].get("cache", ())
        return lambda tokens, last: jitted(params, tokens, {n: last[n] for n in keep} if keep else last)

    def generate(self, prompts, count, speculative=True):
        """Continues lists of ids greedily, by up to `count` tokens, which end before EOS."""
        block, eos = self.manifest["heads"] if speculative else 1, self.manifest["special_ids"].get("eos")
        lengths = np.array([len(row) for row in prompts], np.int32)
        tokens = np.zeros((len(prompts), -(-lengths.max() // 64) * 64), np.int32)  # in steps of 64: few compilations
        for row, prompt in zip(tokens, prompts):
            row[:len(prompt)] = prompt
        out = self.functions["prefill"](tokens, lengths)
        room = [(0, 0), (0, 0), (0, -(-(count + block) // 64) * 64), (0, 0)]
        out["cache"] = {name: jax.numpy.pad(x, room) if x.ndim == 4 else x for name, x in out["cache"].items()}
        line, kept = np.array(out["next"])[:, None], np.zeros(len(prompts), int)
        rows: list[list[int]] = [[] for _ in prompts]
        while True:
            for row, new, drafts in zip(rows, line.tolist(), kept):
                row += new[:drafts + 1]
            if all(len(row) >= count or eos in row for row in rows):
                break
            drafts = np.array(out["drafts"])[:, :block - 1]
            last = np.take_along_axis(line, kept[:, None], 1)
            out = self.functions["verify" if block > 1 else "decode"](np.append(last, drafts, 1), out["cache"])
            line, kept = np.array(out["next"]), np.array(out["accepted"])
        return [row[:row.index(eos) if eos in row[:count] else count] for row in rows]


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--plain"]
    model = Model(pathlib.Path(__file__).parent)
    print(*model.generate([list(map(int, words[1:]))], int(words[0]), "--plain" not in sys.argv)[0])
