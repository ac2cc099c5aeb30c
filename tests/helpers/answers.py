"""What somebody else does with an exported network: run as a script, with none of us at hand.

Takes a folder with the export and one of images, and prints what every format answers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

for name in ("optuna_stitch", "optuna"):
    sys.modules[name] = None  # type: ignore[assignment]

import timm.data  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402


def main(folder: Path, pictures: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    described = config.get("inputs") or [config]
    fields = [one["pretrained_cfg"] for one in described]
    paths = sorted(pictures.glob("*.png"))
    images = []
    for cfg in fields:
        transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg))
        mode = "L" if cfg["input_size"][0] == 1 else "RGB"
        images.append(torch.stack([transform(Image.open(path).convert(mode)) for path in paths]))
    answers = {}
    if (folder / "network.py").exists():
        sys.path.insert(0, str(folder))
        from network import load_network

        answers["python"] = labels(load_network(), images)
    if (folder / "network.pt2").exists():
        answers["program"] = labels(torch.export.load(folder / "network.pt2").module(), images)
    if (folder / "network.onnx").exists():
        answers["onnx"] = labels(load_onnx(folder / "network.onnx"), images)
    if (folder / "network.single.onnx").exists():
        answers["single"] = labels(load_onnx(folder / "network.single.onnx"), images, 1)
    print(json.dumps({"labels": answers, "modules": sorted(sys.modules)}))


def load_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = [one.name for one in session.get_inputs()]

    def run(*given):
        pixels = {name: one.numpy() for name, one in zip(names, given, strict=True)}
        return torch.from_numpy(session.run(None, pixels)[0])

    return run


@torch.no_grad()
def labels(network, images, size=50):
    """Classes, batch by batch as they were evaluated."""
    found = []
    for start in range(0, len(images[0]), size):
        logits = network(*[one[start : start + size] for one in images])
        found.extend(logits.argmax(1).tolist())
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
