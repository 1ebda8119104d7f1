#!/usr/bin/env python3
"""Takes the pictures of the docs: the report of a replay and the status page, as a browser shows them.

Needs Chromium. Writes docs/pictures/report.png and docs/pictures/status-page.png. The report is that of
decreasing-workload.json; the status page shows replays of generated traces.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model.cli.main import require_libraries
from model.cli.parser import Parser

with require_libraries("live"):
    import numpy as np
    from prometheus_client import CollectorRegistry

    from model.nodemodel import ModelSettings, NodeModel
    from model.oversubscriptioncomputation import StrategySettings
    from model.publishers.status_page.history import History
    from model.publishers.status_page.wsgi import application
    from model.replay.trace import read_trace
    from model.slices import Slice, Waits
    from model.status import NodeStatus

PICTURES = ROOT / "docs" / "pictures"
WIDTH = 1000
#: A byte limit keeps the pages quick to load; test_documentation.py checks it.
MOST_BYTES = 150_000

STRATEGIES = ("clt", "conformal", "scroogevm", "rclike")
#: Of the nodes on the status page: name, load, cores, memory (MB), VMs.
NODES = (
    ("http://worker1:9100/metrics", "diurnal", 64, 262144, 34),
    ("http://worker2:9100/metrics", "diurnal", 64, 262144, 22),
    ("http://worker3:9100/metrics", "increasing", 96, 393216, 48),
    ("http://worker4:9100/metrics", "bursty", 48, 196608, 20),
)
#: This node sends nothing in the last slices.
STALE = "http://worker4:9100/metrics"
STALE_SLICES = 5
#: On this node two VMs wait in the last slices, though it has CPU left.
CONTENDED = "http://worker2:9100/metrics"
CONTENDED_SLICES = 2
SLICE_S = 1800
RISK = StrategySettings(risk=0.01)
SCOPES = 4


def main(argv: list[str] | None = None) -> int:
    """Take the pictures; the exit code."""
    parser = Parser(prog="doc_pictures.py", description=__doc__)
    parser.add_argument("-o", "--output", default=str(PICTURES), metavar="FOLDER", help="default: docs/pictures")
    folder = Path(parser.parse_args(argv).output)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        parser.error("no Chromium on PATH")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="doc_pictures.") as name:
        temporary = Path(name)
        for picture, page, width, height in (
            ("report.png", report_page(temporary), 1000, 745),
            ("status-page.png", status_page(temporary), 1360, 900),
        ):
            take_picture(browser, page, folder / picture, width, height)
            print(folder / picture, (folder / picture).stat().st_size)
    return 0


def report_page(folder: Path) -> Path:
    """The report of a replay of the bundled trace."""
    output = folder / "results"
    run(
        sys.executable,
        ROOT / "scroogevm.py",
        f"--load={ROOT / 'decreasing-workload.json'}",
        f"--output={output}",
        "--report",
    )
    return output / "report.html"


def status_page(folder: Path) -> Path:
    """The status page after a few days of generated usage."""
    courses = [list(statuses_of(folder, *node, seed)) for seed, node in enumerate(NODES, 1)]
    history = History()
    for statuses in zip(*courses, strict=True):
        history.publish(statuses)
    now_s = courses[0][-1].slice_end_s + 40
    app = application(history, CollectorRegistry(), SLICE_S, 2 * SLICE_S, lambda: now_s)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "QUERY_STRING": "", "wsgi.input": BytesIO()}
    page = folder / "status.html"
    page.write_bytes(b"".join(app(environ, lambda *_: lambda _: None)))
    return page


def statuses_of(
    folder: Path, node: str, mix: str, cores: int, memory_mb: int, vms: int, seed: int
) -> Iterator[NodeStatus]:
    """The status of a node at the end of each slice."""
    path = folder / f"trace{seed}.json"
    run(
        *(sys.executable, ROOT / "misc" / "tracegen.py", f"--mix={mix}", f"--seed={seed}", f"--vms={vms}"),
        *(f"--cores={cores}", f"--memory-mb={memory_mb}", f"--scopes={SCOPES}", "--scope-s=86400"),
        *(f"--slice-s={SLICE_S}", "--samples=12", "--historical=1", path),
    )
    trace = read_trace(path)
    settings = ModelSettings(
        historical=1, strategies=STRATEGIES, cpu=RISK, mem=RISK, positions=trace.config.positions, guarded=True
    )
    model = NodeModel(settings)
    status = NodeStatus(node, STRATEGIES[0])
    slices = list(trace.slices())
    if node == CONTENDED:
        slices[-CONTENDED_SLICES:] = [replace(one, waits=waits_of(one)) for one in slices[-CONTENDED_SLICES:]]
    for i, finished in enumerate(slices):
        silent = node == STALE and i >= len(slices) - STALE_SLICES
        status = status.aged(finished.end_s) if silent else status.after(finished, model.update(finished))
        yield status


def waits_of(finished: Slice) -> Waits:
    """Two VMs of a slice wait, the others do not."""
    share = np.zeros((len(finished.vms), 12))
    share[0], share[1] = 0.24, 0.13
    return Waits(share, share)


def take_picture(browser: str, page: Path, picture: Path, width: int, height: int) -> None:
    """A screenshot of the top of a page, scaled to ``WIDTH``, with few colours, which keeps it small.

    Parameters
    ----------
    browser : str
    page, picture : Path
    width, height : int
        Size of the browser's window, CSS pixels.
    """
    from PIL import Image, ImageChops

    run(
        *(
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--force-device-scale-factor={WIDTH / width}",
        ),
        *("--blink-settings=preferredColorScheme=1", f"--user-data-dir={page.parent / 'browser'}"),
        *(f"--window-size={width},{height}", f"--screenshot={picture}", page.as_uri()),
    )
    with Image.open(picture) as screenshot:
        image = screenshot.convert("RGB")
        # Without the empty space below the last line.
        empty = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
        box = ImageChops.difference(image, empty).getbbox() or (0, 0, *image.size)
        small = image.crop((0, 0, image.width, min(image.height, box[3] + 20))).quantize(128)
    small.save(picture, optimize=True)
    if picture.stat().st_size > MOST_BYTES:
        raise SystemExit(f"doc_pictures.py: {picture} has more than {MOST_BYTES} bytes")


def run(*command: str | Path) -> None:
    """Run a program without showing its output."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise SystemExit(f"doc_pictures.py: {command[0]} failed\n{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
