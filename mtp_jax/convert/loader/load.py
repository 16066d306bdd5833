"""Runs a model that mtp_jax exported as StableHLO, with jax (and flatbuffers, which its export reads files with) alone.

    python load.py 64 256 100 101 102      64 tokens behind these ids; --plain before them decodes without drafts
"""
import hashlib
import json
import pathlib
import sys

import jax.export
import numpy as np


class Model:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        file = self.checked(self.manifest["params"]["file"])
        self.params = {name: jax.device_put(np.memmap(file, at["dtype"], "r", at["offset"], tuple(at["shape"])))
                       for name, at in self.manifest["params"]["arrays"].items()}
        self.functions = {name: self.function(facts) for name, facts in self.manifest["functions"].items()}

    def checked(self, name):
        with open(self.folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.manifest["files"][name]["sha256"]:
                raise ValueError(f"{self.folder / name} is damaged: copy it again.")
        return self.folder / name

    def function(self, facts):
        program = jax.jit(jax.export.deserialize(bytearray(self.checked(facts["file"]).read_bytes())).call)
        params, keep = {name: self.params[name] for name in facts["params"]}, facts["inputs"].get("cache", ())
        return lambda tokens, last: program(params, tokens, {name: last[name] for name in keep} if keep else last)

    def generate(self, prompts, count, speculative=True):
        """Continues lists of ids greedily, by up to `count` tokens, which end before EOS."""
        block, eos = self.manifest["heads"] if speculative else 1, self.manifest["special_ids"].get("eos")
        lengths = np.array([len(row) for row in prompts], np.int32)
        tokens = np.zeros((len(prompts), -(-lengths.max() // 64) * 64), np.int32)  # in steps of 64: few compilations
        for row, prompt in zip(tokens, prompts):
            row[:len(prompt)] = prompt
        out = self.functions["prefill"](tokens, lengths)
        room = [(0, 0), (0, 0), (0, -(-(count + block) // 64) * 64), (0, 0)]
        cache = {name: jax.numpy.pad(x, room) if x.ndim == 4 else x for name, x in out["cache"].items()}
        line, kept = np.array(out["next"])[:, None], np.zeros(len(prompts), int)
        rows: list[list[int]] = [[] for _ in prompts]
        while True:
            for row, new, drafts in zip(rows, line.tolist(), kept):
                row += new[:drafts + 1]
            if all(len(row) >= count or eos in row for row in rows):
                return [row[:row.index(eos) if eos in row[:count] else count] for row in rows]
            last, drafts = np.take_along_axis(line, kept[:, None], 1), np.array(out["drafts"])[:, :block - 1]
            out = self.functions["verify" if block > 1 else "decode"](np.append(last, drafts, 1), cache)
            line, kept, cache = np.array(out["next"]), np.array(out["accepted"]), out["cache"]


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--plain"]
    if len(words) < 2:
        sys.exit(__doc__)
    model = Model(pathlib.Path(__file__).parent)
    print(*model.generate([list(map(int, words[1:]))], int(words[0]), "--plain" not in sys.argv)[0])
