"""Time the pieces of a supernetwork by onnxruntime.

`optuna-stitch latency export` writes this file. It needs onnxruntime and numpy, reads what lies
beside it, and writes latency.json, which `optuna-stitch latency import` takes in.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

# Every piece is opened so often, and runs as often as is asked for in all: what slows a machine
# down for a while does not slow one piece alone.
PASSES = 3

# What is slow only the first times does not count.
WARM_UP = 3


def time_pieces(
    folder: Path,
    rounds: int,
    threads: int,
    provider: str = "",
    say: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Time all pieces of a folder.

    Args:
        folder: With pieces.json and the pieces.
        rounds: How often each runs.
        threads: Number of threads; onnxruntime's own choice, if 0.
        provider: What onnxruntime shall run on, such as CUDAExecutionProvider; the processor, if
            empty.
        say: Is told how far it is.

    Returns:
        What is to be written into the table.

    Raises:
        RuntimeError: If onnxruntime lacks an operator; names the piece and the node.
    """
    said = json.loads((folder / "pieces.json").read_text(encoding="utf-8"))
    taken: dict[str, dict[str, list[float]]] = {size: {} for size in said["pieces"]}
    for done in range(PASSES):
        for size, pieces in said["pieces"].items():
            say(f"Batches of {size}: round {done + 1} of {PASSES}")
            for name, file in pieces.items():
                try:
                    times = time_piece(folder / file, -(-rounds // PASSES), threads, provider)
                except Exception as error:  # of onnxruntime, whose kinds have no common base
                    raise RuntimeError(
                        f"The piece {name} ({file}) cannot be run: {error}"
                    ) from error
                taken[size].setdefault(name, []).extend(times)
    milliseconds = {}
    for size, column in taken.items():
        median = {name: statistics.median(times) for name, times in column.items()}
        nothing = median.pop("")  # what a call costs that computes nothing
        milliseconds[size] = {name: max(0.0, one - nothing) for name, one in median.items()}
    return {
        "supernetwork": said["supernetwork"],
        "threads": threads,
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "device": f"{platform.machine()} {platform.node()} {provider}".strip(),
        "milliseconds": milliseconds,
    }


def time_piece(path: Path, rounds: int, threads: int, provider: str = "") -> list[float]:
    """Milliseconds of one piece, once for every round.

    Args:
        path: The piece.
        rounds: How often it runs.
        threads: As for `time_pieces`.
        provider: As for `time_pieces`.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = threads
    providers = [provider or "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    rng = np.random.default_rng(0)
    given = {}
    for wanted in session.get_inputs():
        if wanted.type in ("tensor(float)", "tensor(double)", "tensor(float16)"):
            kind = {"float": "float32", "double": "float64"}.get(wanted.type[7:-1], "float16")
            given[wanted.name] = rng.standard_normal(wanted.shape).astype(kind)
        else:
            given[wanted.name] = np.zeros(wanted.shape, wanted.type[7:-1])
    for _ in range(WARM_UP):
        session.run(None, given)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        session.run(None, given)
        times.append(1e3 * (time.perf_counter() - began))
    return times


def main() -> None:
    """Time the pieces beside this file."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description="Time the pieces of a supernetwork.")
    parser.add_argument("--to", type=Path, default=here / "latency.json", help="the table")
    parser.add_argument("--rounds", type=int, default=30, help="how often each piece runs")
    threads = json.loads((here / "pieces.json").read_text(encoding="utf-8"))["threads"]
    parser.add_argument("--threads", type=int, default=threads, help="0: as onnxruntime chooses")
    parser.add_argument("--provider", default="", help="of onnxruntime; the processor, if absent")
    arguments = parser.parse_args()
    said = (arguments.rounds, arguments.threads, arguments.provider)
    try:
        table = time_pieces(here, *said, say=lambda text: print(text, file=sys.stderr))
    except RuntimeError as error:
        sys.exit(str(error))
    arguments.to.write_text(json.dumps(table, indent=1), encoding="utf-8")
    print(f"The table is {arguments.to}")


if __name__ == "__main__":
    main()
