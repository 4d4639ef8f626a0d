"""`python -m bench [name ...]`: run the benches of the table and keep their figures under `bench/results/`."""

import argparse
import importlib
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

# Each module has `run() -> str`: what was measured, in Markdown, without a heading of the first level.
# To add a bench: write the module, name it here.
BENCHES: Mapping[str, str] = {
    "answers": "bench.answers",
    "base": "bench.base",
    "beside": "bench.beside",
    "bounds": "bench.bounds",
    "brush": "bench.brush",
    "crowd_answers": "bench.crowd_answers",
    "dashboard": "bench.dashboard",
    "demo": "bench.demo",
    "diagnoses": "bench.diagnoses",
    "drain": "bench.drain",
    "edits": "bench.edits",
    "export": "bench.export",
    "export_plain": "bench.export_plain",
    "foreign_formats": "bench.foreign_formats",
    "keypoints": "bench.keypoints",
    "job_lanes": "bench.job_lanes",
    "layouts": "bench.layouts",
    "layouts_found": "bench.layouts_found",
    "layouts_suggest": "bench.layouts_suggest",
    "house": "bench.house",
    "look": "bench.look",
    "look_speed": "bench.look_speed",
    "image_labels": "bench.image_labels",
    "intervals": "bench.intervals",
    "learn": "bench.learn",
    "learning": "bench.learning",
    "learning_memory": "bench.learning_memory",
    "learning_sizes": "bench.learning_sizes",
    "mask_learning": "bench.mask_learning",
    "opinion": "bench.opinion",
    "outline_consensus": "bench.outline_consensus",
    "predict": "bench.predict",
    "prelabel": "bench.prelabel",
    "qc": "bench.qc",
    "qc_live": "bench.qc_live",
    "queue": "bench.queue",
    "same_bytes": "bench.same_bytes",
    "smart": "bench.smart",
    "shapes": "bench.shapes",
    "selection": "bench.selection",
    "sources": "bench.sources",
    "start": "bench.start",
    "stores": "bench.stores",
    "submit": "bench.submit",
    "swap": "bench.swap",
    "tasks": "bench.tasks",
    "thresholds": "bench.thresholds",
    "tiles": "bench.tiles",
    "train": "bench.train",
    "tune": "bench.tune",
    "voice": "bench.voice",
    "written_formats": "bench.written_formats",
}

# Benches whose figures are the last section of another's page: (that bench, the section's heading).
SECTIONS: Mapping[str, tuple[str, str]] = {"learning_sizes": ("learning", "## By the size of the project")}

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """The processor and Python that the figures are from."""
    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    processor = f"{len(models)} x {models[0]}" if models else platform.processor()
    return f"{processor}, {platform.system()}, Python {platform.python_version()}"


def main(argv: list[str]) -> int:
    """Run the benches named, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHES], metavar="name", help=", ".join(BENCHES))
    for name in parser.parse_args(argv).names or BENCHES:
        print(f"== {name}", flush=True)
        body = importlib.import_module(BENCHES[name]).run()
        RESULTS.mkdir(exist_ok=True)
        page, heading = SECTIONS.get(name, (name, f"# {name}"))
        text = f"{heading}\n\n{body.strip()}\n\nMeasured on {machine()}; `python -m bench {name}` measures again.\n"
        write(RESULTS / f"{page}.md", heading, text)
        print(text, flush=True)
    return 0


def write(page: Path, heading: str, text: str) -> None:
    """Write a bench's figures; what another bench has on the same page stays."""
    before = page.read_text() if page.is_file() else ""
    marks = [mark for _, mark in SECTIONS.values() if f"\n{mark}\n" in before]
    at = before.index(f"\n{marks[0]}\n") if marks else len(before)
    own, section = before[:at].rstrip("\n"), before[at:].strip("\n")
    own, section = (own, text) if heading.startswith("## ") else (text, section)
    page.write_text("\n\n".join(part.rstrip("\n") for part in (own, section) if part) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
