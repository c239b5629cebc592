"""Run an ONNX network, see where its time goes, tune it.

python examples/network.py model.onnx
"""

import sys

import tilewright as tw
from tilewright.feeds import network_feeds


def main(model: str) -> None:
    session = tw.InferenceSession(model)
    feeds = network_feeds(session.get_inputs(), given=())  # random numbers of the right shapes
    for value, array in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        print(value.name, array.shape, array.dtype)
    session.tune("30s", feeds=feeds)
    for row in sorted(session.profile(feeds), key=lambda row: -row.microseconds)[:10]:
        print(f"{row.microseconds:8.1f} µs  {row.gflops:6.1f} GFLOP/s  {row.op}: {row.family} ({row.configuration})")


if __name__ == "__main__":
    main(sys.argv[1])
