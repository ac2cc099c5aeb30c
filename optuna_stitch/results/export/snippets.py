"""Code that loads an exported network, to be copied from its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optuna_stitch.networks.view import View

_LOAD = {
    "python": (
        "`network.py` and `network.safetensors`, which need torch and safetensors:",
        """\
from network import load_network

network = load_network()
with torch.no_grad():
    logits = network(*images)""",
    ),
    "program": (
        "`network.pt2`, which needs torch:",
        """\
network = torch.export.load("network.pt2").module()
with torch.no_grad():
    logits = network(*images)""",
    ),
    "onnx": (
        "`network.onnx`, which needs onnxruntime:",
        """\
import onnxruntime

session = onnxruntime.InferenceSession("network.onnx")
names = [argument.name for argument in session.get_inputs()]
given = {name: pixels.numpy() for name, pixels in zip(names, images)}
logits = torch.from_numpy(session.run(None, given)[0])""",
    ),
}
_PREPARE = """\
import json

import timm.data
import torch
from PIL import Image

with open("config.json", encoding="utf-8") as file:
    config = json.load(file)
image = Image.open("image.png")
images = []
for cfg in {cfgs}:
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg))
    images.append(transform(image.convert({mode}))[None])"""


def snippets(
    views: Mapping[str, View], formats: Sequence[str], *, segments: bool, named: bool
) -> list[str]:
    """Lines of Markdown: how to prepare an image, to load each format, and to read the answer.

    Args:
        views: How each input sees images, by its name.
        formats: What the network was exported as.
        segments: Whether it labels every pixel.
        named: Whether the classes have names.
    """
    modes = {view.mode for view in views.values()}
    mode = f'"{modes.pop()}"' if len(modes) == 1 else '"L" if cfg["input_size"][0] == 1 else "RGB"'
    several = len(views) > 1
    cfgs = '[one["pretrained_cfg"] for one in config["inputs"]]'
    names = '["inputs"][0]["pretrained_cfg"]' if several else '["pretrained_cfg"]'
    what = "class of every pixel" if segments else "class"
    answer = "labels = logits.argmax(dim=1)  # " + f"{what}: a number"
    if named and not segments:
        answer = f'print(config{names}["label_names"][int(logits.argmax(dim=1))])'
    elif named:
        answer += f', the place of its name in config{names}["label_names"]'
    return [
        "An image becomes the network's input by timm's transform. In this folder:",
        "",
        *_code(_PREPARE.format(cfgs=cfgs if several else '[config["pretrained_cfg"]]', mode=mode)),
        *(
            line
            for name in formats
            for line in (_LOAD[name][0], "", *_code(f"{_LOAD[name][1]}\n{answer}"))
        ),
        "`images` may hold any number of images, along its first dimension.",
        "",
    ]


def _code(text: str) -> list[str]:
    return ["```python", *text.splitlines(), "```", ""]
