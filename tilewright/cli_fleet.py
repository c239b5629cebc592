"""`tilewright worker`: measure for others on this machine's device."""

from __future__ import annotations

import asyncio

import click

from tilewright.options import device_option


@click.command()
@click.argument("address")
@device_option
def worker(address: str, selector: str | None) -> None:
    """Measure for whoever tunes with --fleet ADDRESS, a Dask scheduler's, on one device of this machine.

    Ends with the scheduler, or with Ctrl-C. A machine with several devices runs a worker for each.
    """
    from tilewright.autotune.fleet import checked_address
    from tilewright.runtime import select_device

    checked_address(address)
    from tilewright.autotune.fleet_worker import serve

    device = select_device(selector)

    def ready(own: str) -> None:
        click.echo(f"measuring on {device.name} for {address} as {own}", err=True)

    asyncio.run(serve(address, device, ready=ready))
    click.echo("the worker has ended", err=True)
