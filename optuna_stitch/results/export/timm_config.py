"""Describe a network as timm does on the hub, so that its transform is the one of our views."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from optuna_stitch.networks.view import View


def timm_config(
    architecture: str,
    classes: int,
    views: Mapping[str, View],
    *,
    class_names: Sequence[str] | None,
    licence: str | None,
) -> str:
    """The text of ``config.json``.

    Args:
        architecture: What to call the network.
        classes: Number of classes.
        views: How each input sees images, by its name.
        class_names: In the order of their labels, where they are known.
        licence: Where there is one.

    Returns:
        JSON with ``pretrained_cfg``, or with one for each of ``inputs`` where there are several;
        ``timm.data.resolve_data_config(pretrained_cfg=...)`` reads it.
    """
    shared: dict[str, Any] = {"num_classes": classes}
    if class_names is not None:
        shared["label_names"] = list(class_names)
    if licence is not None:
        shared["license"] = licence
    described = {name: {**asdict(view), **shared} for name, view in views.items()}
    config: dict[str, Any] = {
        "architecture": re.sub(r"[^\w.-]+", "_", architecture),
        "num_classes": classes,
    }
    if len(described) == 1:
        config["pretrained_cfg"] = next(iter(described.values()))
    else:
        config["inputs"] = [
            {"name": name, "pretrained_cfg": fields} for name, fields in described.items()
        ]
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"
