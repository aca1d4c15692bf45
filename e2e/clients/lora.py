"""Small random LoRA adapters of SmolLM2-135M, as PEFT saves them."""

from __future__ import annotations

import json
import pathlib
import random
import struct

LAYERS = 30
# The projections of a layer that are changed, with rows and columns.
SHAPES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.v_proj": (192, 576),
    "mlp.down_proj": (576, 1536),
}
RANK = 2


def write_adapter(folder: pathlib.Path, seed: int, alpha: float = 0.2) -> pathlib.Path:
    """Makes the folder; with another seed another adapter, whose answers are others."""
    folder.mkdir()
    chance = random.Random(seed)
    header, data = {}, bytearray()
    for layer in range(LAYERS):
        for module, (rows, columns) in SHAPES.items():
            for half, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
                values = [chance.uniform(-1, 1) for _ in range(shape[0] * shape[1])]
                begin = len(data)
                data += struct.pack(f"<{len(values)}f", *values)
                name = f"base_model.model.model.layers.{layer}.{module}.lora_{half}.weight"
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    modules = [module.split(".")[1] for module in SHAPES]
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": alpha, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
