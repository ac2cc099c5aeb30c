"""What an exported cascade takes per image, against its parents and the plain cascade.

    uv run python tests/benchmarks/exits.py [--quick]

ResNet-20 × ResNet-56 on CIFAR-10 images. The plain cascade and a stitched one are tuned on 1,000
validation images so that a quarter of the images goes on, and exported as Python files; these run
on 512 test images, one by one and in batches of 64, in turns over several rounds. The last line is
JSON: milliseconds per image by batch size and network, medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import optuna_stitch as st
from optuna_stitch.stitching.genotype import Genotype
from optuna_stitch.utils.text import markdown_table

sys.path.insert(0, str(Path(__file__).parent))
from pairs import DATA, MISSING, load_pair, say, spread, state

STITCH = "a.layer1.2.add -> b.layer1.8.add"
SHARE = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on 2 cores")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"This benchmark {MISSING}.")
    count, rounds = (128, 5) if arguments.quick else (512, 9)
    pair = load_pair("cifar")
    supernetwork = st.stitch(pair.a, pair.b)
    supernetwork.fit(pair.data.train.take(400))
    on = [switch.name for switch in supernetwork.switches].index(STITCH)
    named = {
        "parent a": Genotype("a"),
        "parent b": Genotype("b"),
        "plain cascade": Genotype("a then both", threshold=SHARE),
        "stitched cascade": Genotype("a then both", frozenset([on]), SHARE),
    }
    evaluator = st.Evaluator(supernetwork, pair.data.val.take(1000), (), kernels="plain")
    subnetworks = [supernetwork.subnetwork(genotype) for genotype in named.values()]
    images = pair.data.test.pick(range(count), supernetwork.views).images[0]
    networks: dict[str, Callable[[Tensor], Tensor]] = {}
    macs: dict[str, tuple[int, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, subnetwork in zip(named, evaluator.tune_exits(subnetworks), strict=True):
            to = subnetwork.export(Path(folder) / name.replace(" ", "-"))
            networks[name] = runpy.run_path(str(to / "network.py"))["load_network"]()
            macs[name] = subnetwork.macs, subnetwork.worst_macs
            say(f"exported {name}")
    print(f"{state()}\n")
    result: dict[str, dict[str, float]] = {}
    for size in (1, 64):
        times: dict[str, list[float]] = {name: [] for name in networks}
        with torch.inference_mode():
            for network in networks.values():
                network(images[:size])  # what is slow only the first time does not count
            for _ in range(rounds):
                for name, network in networks.items():
                    begin = time.perf_counter()
                    for batch in images.split(size):
                        network(batch)
                    times[name].append(1e3 * (time.perf_counter() - begin) / count)
        base = statistics.median(times["parent b"])
        rows = [
            [name, f"{macs[name][0] / 1e6:.1f}", f"{macs[name][1] / 1e6:.1f}", spread(some),
             f"{statistics.median(some) / base:.2f}"]
            for name, some in times.items()
        ]  # fmt: skip
        print(f"**Batches of {size}**\n")
        head = ["network", "M MACs", "at worst", "ms per image", "× parent b"]
        print(markdown_table(head, rows, align="lr"), end="\n\n", flush=True)
        result[str(size)] = {name: statistics.median(some) for name, some in times.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
