"""syncthing: six devices, each connected to all others, one shared folder.

Method: discovery, relays, NAT traversal and reporting are off and the addresses are fixed. The delay of its folder
watcher is measured at 1 s, the smallest it takes, and at its default of 10 s.
"""

import xml.etree.ElementTree as xml
from pathlib import Path

from . import files, packages
from .bench import Bench, tool
from .namespaces import SERVERS, address

PACKAGES = ["syncthing", *files.PACKAGES]
PORT = 22000

OFF = {
    "globalAnnounceEnabled": "false",
    "localAnnounceEnabled": "false",
    "relaysEnabled": "false",
    "natEnabled": "false",
    "startBrowser": "false",
    "crashReportingEnabled": "false",
    "urAccepted": "-1",
    "autoUpgradeIntervalH": "0",
}


def measure(bench: Bench) -> None:
    bench.results.notes["syncthing"] = packages.version("syncthing")
    slow = bench.options.slow_samples
    for delay, count, name in ((1, slow, "delay 1 s (its smallest)"), (10, max(1, slow // 5), "delay 10 s (default)")):
        with bench.fresh():
            _measure_delay(bench, delay, count, name)


def _measure_delay(bench: Bench, delay: int, count: int, name: str) -> None:
    bench.progress.phase("syncthing: making keys")
    devices = {server: _generate(bench, server) for server in SERVERS}
    daemons = []
    for server in SERVERS:
        _configure(bench, server, devices, delay)
        argv = [tool("syncthing"), "serve", "--home", str(_home(bench, server)), "--no-browser", "--no-restart"]
        environment = {"STNODEFAULTFOLDER": "1", "STNOUPGRADE": "1", "HOME": str(bench.room(server))}
        daemons.append(bench.processes.start(f"syncthing-{server}", argv, server=server, environment=environment))
    folders = [bench.room(server, "share") for server in SERVERS]
    series = bench.results.latency("syncthing", f"syncthing, {name}", "not synced")
    files.measure_saves(bench, series, folders, count, gap_ms=500, patience_each=delay + 15)
    bench.take_idle("syncthing", "syncthing", [daemon.pid for daemon in daemons])


def _home(bench: Bench, server: int) -> Path:
    return bench.room(server, "home")


def _generate(bench: Bench, server: int) -> str:
    """Makes key and configuration of a device and returns its id."""
    home = _home(bench, server)
    bench.processes.run([tool("syncthing"), "generate", "--no-default-folder", "--home", str(home)])
    return bench.processes.run([tool("syncthing"), "serve", "--device-id", "--home", str(home)]).strip()


def _configure(bench: Bench, server: int, devices: dict[int, str], delay: int) -> None:
    path = _home(bench, server) / "config.xml"
    tree = xml.parse(path)
    root = tree.getroot()
    for old in [*root.findall("device"), *root.findall("folder")]:
        root.remove(old)
    share = str(bench.room(server, "share"))
    folder = xml.SubElement(
        root,
        "folder",
        {"id": "share", "path": share, "type": "sendreceive", "fsWatcherEnabled": "true", "fsWatcherDelayS": str(delay)},
    )
    (bench.room(server, "share") / ".stfolder").mkdir(exist_ok=True)
    for other, identity in devices.items():
        xml.SubElement(folder, "device", {"id": identity})
        device = xml.SubElement(root, "device", {"id": identity, "name": f"server{other}"})
        xml.SubElement(device, "address").text = f"tcp://{address(other)}:{PORT}"
    options = root.find("options")
    assert options is not None
    for name, value in {**OFF, "listenAddress": f"tcp://{address(server)}:{PORT}"}.items():
        found = options.find(name)
        if found is None:
            found = xml.SubElement(options, name)
        found.text = value
    tree.write(path)
