"""Virtual machines that are handled without p2pdb: a libvirtd for one host, and guests of the image `full` on it."""

import contextlib
import subprocess
import time
from pathlib import Path

from . import packages, recovery
from .bench import Bench
from .errors import RigError

MEMORY_MIB = 320

TOOLS = Path(__file__).resolve().parent.parent
IMAGE = TOOLS.parent / "target/images/full"


class Libvirtd:
    """A libvirtd of one host, see `tools/own-libvirtd`; on one core with all of its machines, if that is said."""

    def __init__(self, bench: Bench, host: int, core: int | None = None) -> None:
        self._bench = bench
        self.host = host
        self.folder = bench.work / f"libvirt-{host}"
        # What it sees as /var/lib/libvirt, so that a saved state fits every host.
        self.machines = self.folder / "lib"
        socket = self.folder / "run/libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={socket}"
        # What is waited for is the socket of this one, not of one before.
        socket.unlink(missing_ok=True)
        bound = [] if core is None else ["taskset", "--cpu-list", str(core)]
        program = [*bound, str(TOOLS / "own-libvirtd"), str(self.folder)]
        self._process = bench.processes.start(f"libvirtd-{host}", [*recovery._enter(host), *program])
        bench.processes.wait_until("libvirtd listens", socket.exists, 30)

    def virsh(self, *words: str) -> str:
        return self._bench.processes.run(["virsh", "-q", "-c", self.uri, *words])

    def answers(self, name: str) -> bool:
        words = ["virsh", "-q", "-c", self.uri, "qemu-agent-command", name, '{"execute":"guest-ping"}']
        return subprocess.run(words, capture_output=True, timeout=30, check=False).returncode == 0

    def processes(self) -> list[int]:
        """Those of its machines."""
        return [int(file.read_text()) for file in self.folder.glob("run/qemu/*.pid")]

    def stop(self) -> None:
        """Ends it and its machines, as a power cut does."""
        self._bench.processes.stop(self._process, grace=0.1)
        self.end()

    def end(self) -> None:
        """Ends its machines, which outlive it."""
        for file in self.folder.glob("run/qemu/*.pid"):
            with contextlib.suppress(ProcessLookupError, ValueError, OSError):
                subprocess.run(["kill", "-9", file.read_text().strip()], check=False, capture_output=True)


class Guest:
    """One machine, with a connection of its own."""

    def __init__(self, bench: Bench, libvirtd: Libvirtd, name: str, devices: str = "") -> None:
        packages.ensure(["python3-libvirt"], bench.progress)
        import libvirt

        # What goes wrong is told by what is raised.
        libvirt.registerErrorHandler(lambda *_: None, None)
        self._connection = libvirt.open(libvirtd.uri)
        self.name = name
        self.host = libvirtd.host
        folder = bench.work / name
        folder.mkdir()
        self.state = folder / "state"
        self.disk = libvirtd.machines / f"{name}.qcow2"
        bench.processes.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(IMAGE / "disk.qcow2"), str(self.disk)])
        self._definition = (
            f"<domain type='qemu'><name>{self.name}</name><memory unit='MiB'>{MEMORY_MIB}</memory><vcpu>1</vcpu>"
            f"<os><type arch='x86_64'>hvm</type><kernel>{IMAGE}/vmlinuz</kernel><initrd>{IMAGE}/initrd.img</initrd>"
            "<cmdline>console=ttyS0 quiet panic=-1</cmdline></os><features><acpi/></features>"
            "<on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash><devices>"
            f"<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='unsafe'/><source file='/var/lib/libvirt/{name}.qcow2'/>"
            "<target dev='vda' bus='virtio'/></disk>"
            "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel><memballoon model='none'/>"
            f"{devices}</devices></domain>"
        )

    def cold(self) -> None:
        self._connection.createXML(self._definition, 0)
        self._wait()

    def save(self) -> None:
        self._domain().save(str(self.state))

    def pause(self) -> None:
        self._domain().suspend()

    def restore_and_pause(self) -> None:
        self.restore()
        self.pause()

    def resume(self) -> None:
        self._domain().resume()
        self._wait()

    def restore(self, state: Path | None = None) -> None:
        self._connection.restore(str(state or self.state))
        self._wait()

    def destroy(self) -> None:
        self._domain().destroy()

    def _domain(self):
        return self._connection.lookupByName(self.name)

    def _wait(self) -> None:
        """Until the agent in the guest answers."""
        import libvirt
        import libvirt_qemu

        deadline = time.monotonic() + 300
        while True:
            try:
                libvirt_qemu.qemuAgentCommand(self._domain(), '{"execute":"guest-ping"}', 5, 0)
                return
            except libvirt.libvirtError as error:
                if time.monotonic() > deadline:
                    raise RigError(f"{self.name} does not answer: {error}") from error
            time.sleep(0.005)


def resident_mib(pid: int) -> float:
    """What of the machine's memory a process takes for itself (its proportional set)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RigError(f"/proc/{pid}/smaps_rollup has no line Pss")
