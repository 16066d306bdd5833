"""Does a second head help a very small model to take up names in stories? The paper asks so in section 4.1; in small.

Hardware: 2 CPU cores, about four minutes. The paper's smallest shape (128 wide, 5 layers) and its two heads, on bytes;
the paper trains 26 billion tokens, this four million bytes. --config.model.num_heads=1 is what to compare with.

Data: 255 fairy tales of FairytaleQA (Xu et al. 2022; github.com/uci-soe/FairytaleQAData, Apache-2.0; the stories are in
the public domain). From a folder that holds a clone of that repository, make one line a story:

    import csv, glob, json, os
    os.makedirs("data/childrens_stories", exist_ok=True)
    for split in ("train", "val"):
        with open(f"data/childrens_stories/{split}.jsonl", "w") as out:
            for path in sorted(glob.glob(f"FairytaleQAData/data-by-train-split/section-stories/{split}/*.csv")):
                sections = [row["text"] for row in csv.DictReader(open(path, newline="", encoding="utf-8-sig"))]
                print(json.dumps({"id": os.path.basename(path)[:-10], "text": "\\n\\n".join(sections)}), file=out)

    python -m experiments.stories --workdir=runs/stories

Files elsewhere are named by --config.data.path and --config.data.validation_path.

Expected: 1.97 and 2.89 bits per held-out byte for heads 1 and 2.
"""

from mtp_jax import presets, train
from mtp_jax.config import default_config


def get_config():
    """Returns the settings of the experiment."""
    config = default_config()
    presets.apply_shape(config, "1m")
    config.model.num_heads = 2
    config.data.source = "jsonl"
    config.data.path = "data/childrens_stories/train.jsonl"
    config.data.field = "text"
    config.data.validation_path = "data/childrens_stories/val.jsonl"
    config.data.batch_size = 8
    config.data.seq_len = 512
    config.data.validation_batches = 16
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 60
    config.train.num_steps = 1000
    config.train.checkpoint_every = 200
    config.train.validate_every = 100
    return config


if __name__ == "__main__":
    train.main(get_config)
