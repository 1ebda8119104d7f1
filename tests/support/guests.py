"""Real guests for the tests: a private libvirtd and sshd, QEMU without KVM, and a Linux controlled by a serial port.

Each `Host` has its own namespaces with private /etc, /run and /var, separate from the system's libvirtd and from other
hosts. All its processes end with the first one, which ends with the test run.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import lzma
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from tests.support.servers import free_port, wait_for

if TYPE_CHECKING:
    import libvirt

PROGRAMS = ("libvirtd", "qemu-system-x86_64", "unshare", "nsenter", "setpriv", "dpkg-deb")
SSH_PROGRAMS = ("ssh", "sshd", "ssh-keygen", "virt-ssh-helper")
KERNEL_PACKAGE = "linux-image-cloud-amd64"
MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"),
    *("virtio_balloon", "virtio_blk"),
)
BALLOON, SWAP_DISK = "virtio_balloon", "virtio_blk"
KERNEL_ARGUMENTS = "console=ttyS0 quiet nokaslr mitigations=off tsc=reliable cryptomgr.notests panic=-1"
# Folder of hosts and cache: short, because socket paths are limited, and outside of what a host hides, unlike TMPDIR.
TEMPORARY = Path("/tmp")
READY = "shell ready"
PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"

INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t tmpfs -o size=100% none /tmp
asked() {{ grep -qw "$1" /proc/cmdline; }}
for module in {" ".join(MODULES)}; do
    case $module in
    {BALLOON}) asked noballoon && continue ;;
    {SWAP_DISK}) asked swapdisk || continue ;;
    esac
    [ ! -e /modules/$module.ko ] || insmod /modules/$module.ko
done
if asked swapdisk; then
    until [ -e /dev/vda ]; do usleep 50000; done
    mkswap /dev/vda >/dev/null && swapon /dev/vda
fi

# fill MB: fill a tmpfs to this size, replacing its content. It can be swapped out.
fill() {{ dd if=/dev/zero of=/tmp/fill bs=1M count="$1" 2>/dev/null; }}
unfill() {{ rm -f /tmp/fill; }}
# Read the filled memory: swapped pages return without major faults.
reread() {{ cat /tmp/fill >/dev/null; }}
# hold MB: a process allocates this much anonymous memory.
hold() {{ dd if=/dev/zero bs="$1M" count=1 2>/dev/null | sleep 1000000 & echo $! >/run.hold; usleep 200000; }}
unhold() {{ kill "$(cat /run.hold)"; }}
# churn MB: a process rewrites this much anonymous memory continuously: major faults once it is swapped out.
churn() {{ dd if=/dev/zero of=/dev/null bs="$1M" 2>/dev/null & echo $! >/run.churn; }}
unchurn() {{ kill "$(cat /run.churn)"; }}
# burn SECONDS PERCENT: use a CPU for this share of each second, at most 99.
burn() {{
    end=$(($(date +%s) + $1))
    while [ "$(date +%s)" -lt $end ]; do
        timeout -s KILL "0.$(printf %02d "$2")" yes >/dev/null
        usleep $(((100 - $2) * 10000))
    done 2>/dev/null
}}

stty -F /dev/ttyS1 -echo -onlcr
while :; do
    # A subshell, because a syntax error ends it.
    (echo {READY} >/dev/console; while read -r line; do eval "$line" </dev/null; done) </dev/ttyS1 >/dev/ttyS1 2>&1
    usleep 100000
done
"""

# The first process of a host's namespaces: mounts private folders over the system's, then reaps children.
HOLDER = """
import signal, subprocess, sys
for name in ("etc", "var", "run"):
    subprocess.run(["mount", "--bind", sys.argv[1] + "/" + name, "/" + name], check=True)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
while True:
    signal.pause()
"""

PASSWD = """root:x:0:0:root:{home}:/bin/sh
sshd:x:103:65534::/run/sshd:/usr/sbin/nologin
libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin
nobody:x:65534:65534::/:/usr/sbin/nologin
"""
SHADOW = "root:none:19000::::::\n"
GROUP = "root:x:0:\nkvm:x:64054:\nlibvirt-qemu:x:64055:\nnogroup:x:65534:\n"
QEMU_CONF = """user = "root"
group = "root"
security_driver = "none"
stdio_handler = "file"
remember_owner = 0
namespaces = []
cgroup_controllers = []
"""
LIBVIRTD_CONF = """auth_unix_rw = "none"
host_uuid = "{uuid}"
log_outputs = "3:file:{log}"
"""
SSHD_CONF = """Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile {folder}/sshd.pid
StrictModes no
PasswordAuthentication no
UsePAM no
MaxStartups 100
"""
# Does not use ~/.ssh.
SSH_WRAPPER = """#!/bin/sh
exec ssh -F none -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o IdentityAgent=none -o IdentitiesOnly=yes "$@"
"""


class CannotBuildError(Exception):
    """No kernel or no busybox is available."""


@dataclass(frozen=True, slots=True)
class Image:
    """Kernel and initramfs of a guest."""

    kernel: Path
    initrd: Path


def which(program: str) -> str | None:
    """Path of a program; root's folders are searched too."""
    return shutil.which(program, path=PATH)


def missing_ssh() -> str | None:
    """Why guests cannot be reached by ssh here, or None."""
    absent = [program for program in SSH_PROGRAMS if which(program) is None]
    return missing() or (f"not installed: {', '.join(absent)}" if absent else None)


@functools.lru_cache(maxsize=1)
def missing() -> str | None:
    """Why real guests cannot run here, or None. Builds the image of the guests when it is missing."""
    if os.geteuid() != 0:
        return "real guests need root"
    absent = [program for program in PROGRAMS if which(program) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    try:
        import libvirt  # noqa: F401
    except ImportError:
        return "libvirt-python is not installed"
    probe = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        return f"namespaces are forbidden here: {probe.stderr.strip()}"
    try:
        build_guest()
    except CannotBuildError as reason:
        return str(reason)
    return None


def cache_folder() -> Path:
    """A private folder that is kept between test runs."""
    folder = TEMPORARY / f"scroogevm-guests-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.geteuid() or folder.is_symlink():
        raise CannotBuildError(f"{folder} belongs to another user")
    return folder


def build_guest(folder: Path | None = None) -> Image:
    """Build kernel and initramfs once and keep them in ``folder`` (default: `cache_folder`).

    Raises
    ------
    CannotBuildError
        When no kernel is installed or can be downloaded, or there is no static busybox.
    """
    folder = folder or cache_folder()
    recipe = hashlib.sha256(repr((INIT, MODULES)).encode()).hexdigest()[:12]
    target = folder / f"image-{recipe}"
    image = Image(target / "vmlinuz", target / "initrd.gz")
    if image.kernel.is_file() and image.initrd.is_file():
        return image
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        kernel, modules = find_kernel(folder, scratch)
        busybox = find_busybox(folder, scratch)
        new = scratch / "image"
        new.mkdir()
        shutil.copyfile(kernel, new / "vmlinuz")
        (new / "initrd.gz").write_bytes(gzip.compress(initramfs(busybox, modules), 1))
        with contextlib.suppress(OSError):  # another run was faster
            new.rename(target)
    return image


def find_kernel(folder: Path, scratch: Path, root: Path = Path("/")) -> tuple[Path, Path]:
    """Kernel and folder of its modules: an installed cloud kernel, a package, or any installed kernel."""
    installed = installed_kernel(root, "vmlinuz-*cloud-amd64")
    if installed is not None:
        return installed
    try:
        unpack(package(KERNEL_PACKAGE, "linux-image-*cloud-amd64_*.deb", folder), scratch / "kernel")
        kernel = installed_kernel(scratch / "kernel", "vmlinuz-*")
    except CannotBuildError:
        kernel = installed_kernel(root, "vmlinuz-*")
        if kernel is None:
            raise
    if kernel is None:
        raise CannotBuildError(f"no kernel with a balloon driver in {KERNEL_PACKAGE}")
    return kernel


def installed_kernel(root: Path, pattern: str) -> tuple[Path, Path] | None:
    for kernel in sorted(root.glob(f"boot/{pattern}"), reverse=True):
        modules = root / "lib/modules" / kernel.name.removeprefix("vmlinuz-")
        if next(modules.rglob(f"{BALLOON}.ko*"), None):
            return kernel, modules
    return None


def find_busybox(folder: Path, scratch: Path) -> bytes:
    installed = which("busybox")
    if installed is not None:
        content = Path(installed).read_bytes()
        if is_static(content):
            return content
    unpack(package("busybox-static", "busybox-static_*.deb", folder), scratch / "busybox")
    return next((scratch / "busybox").rglob("bin/busybox")).read_bytes()


def is_static(program: bytes) -> bool:
    """Whether a 64-bit ELF program has no interpreter, and thus no dynamic libraries."""
    start, (size, count) = struct.unpack_from("<Q", program, 32)[0], struct.unpack_from("<HH", program, 54)
    return all(struct.unpack_from("<I", program, start + size * k)[0] != 3 for k in range(count))


def package(name: str, pattern: str, folder: Path) -> Path:
    """A Debian package from the tests' cache or apt's, downloaded when it is in neither."""
    for place in (folder, Path("/var/cache/apt/archives")):
        for found in sorted(place.glob(pattern), reverse=True):
            return found
    depends = subprocess.run(["apt-cache", "depends", name], capture_output=True, text=True, check=False).stdout
    real = [word for word in depends.split() if word.startswith("linux-image-") and word != name]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        download = subprocess.run(
            ["apt-get", "download", "-q", *(real[:1] or [name])],
            cwd=scratch,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        for found in Path(scratch).glob("*.deb"):
            return found.rename(folder / found.name)
    errors = download.stderr.strip().splitlines()
    raise CannotBuildError(f"{name} cannot be downloaded: {errors[-1] if errors else 'no message from apt-get'}")


def unpack(deb: Path, target: Path) -> None:
    subprocess.run(["dpkg-deb", "-x", deb, target], capture_output=True, check=True)


def module_bytes(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout
    return path.read_bytes()


def initramfs(busybox: bytes, modules: Path) -> bytes:
    """A cpio archive with busybox, the init script and the kernel's virtio modules."""
    files: dict[str, tuple[int, bytes]] = dict.fromkeys(
        ("bin", "proc", "sys", "dev", "tmp", "modules"), (0o040755, b"")
    )
    files["init"] = (0o100755, INIT.encode())
    files["bin/busybox"] = (0o100755, busybox)
    for name in MODULES:
        for found in modules.rglob(f"{name}.ko*"):
            files[f"modules/{name}.ko"] = (0o100644, module_bytes(found))
    files["TRAILER!!!"] = (0, b"")
    archive = bytearray()
    for inode, (path, (mode, content)) in enumerate(files.items(), 1):
        # Numbers of cpio's "newc": inode, mode, uid, gid, links, time, size, four of devices, length of the name, sum
        numbers = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path) + 1, 0)
        archive += b"070701" + b"".join(b"%08X" % number for number in numbers) + path.encode() + b"\0"
        archive += bytes(-len(archive) % 4) + content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def children(parent: int, program: str) -> list[int]:
    """Child processes of ``parent`` with this name, such as the ssh clients of libvirt connections."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            if name == program and int(rest.split()[1]) == parent:
                pids.append(int(folder.name))
    return pids


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """Stop processes for the duration of the context."""
    send(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        send(pids, signal.SIGCONT)


@contextlib.contextmanager
def mute() -> Iterator[int]:
    """A port that accepts connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield int(listening.getsockname()[1])


class Host:
    """A machine with a libvirtd; ``with Host() as host`` starts and stops it.

    It ends with the thread that started it.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="host-", dir=TEMPORARY))
        self._holder: subprocess.Popen[str] | None = None
        self._first_pid = 0

    def __enter__(self) -> Host:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def uri(self) -> str:
        """libvirt URI without ssh."""
        return f"qemu:///system?socket={self.folder}/run/libvirt/libvirt-sock"

    @property
    def libvirtd_pid(self) -> int:
        """Pid of libvirtd, outside of its namespace."""
        return self.outer_pid(self.folder / "run/libvirtd.pid")

    def start(self) -> None:
        """Start libvirtd, also after `kill`; running guests are found again."""
        if self._holder is None:
            self._lay_out()
            self._hold()
        command = ["libvirtd", "--daemon", "-f", self.folder / "libvirtd.conf", "-p", "/run/libvirtd.pid"]
        self.inside(*command)
        wait_for((self.folder / "run/libvirt/libvirt-sock").is_socket)

    def inside(self, *command: str | Path) -> None:
        """Run a command in the namespaces of this host; daemons that it starts stay there."""
        environ = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": str(self.folder / "home")}
        with (self.folder / "log/commands").open("a") as log:
            done = subprocess.run(
                ["nsenter", f"--target={self._first_pid}", "--mount", "--pid", "--", *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                timeout=60,
                check=False,
            )
        if done.returncode:
            raise AssertionError(f"{command[0]}: {self.log()}")

    def log(self) -> str:
        """The last output of libvirtd and other programs of this host."""
        return "".join(path.read_text(errors="replace")[-4000:] for path in (self.folder / "log").iterdir())

    def kill(self) -> None:
        """Kill libvirtd with SIGKILL; the guests keep running."""
        pid = self.libvirtd_pid
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{pid}").exists())

    def freeze(self) -> None:
        """Stop libvirtd with SIGSTOP: connections are accepted and hang."""
        os.kill(self.libvirtd_pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue libvirtd."""
        os.kill(self.libvirtd_pid, signal.SIGCONT)

    def stop(self) -> None:
        """End all processes of this host and remove its folder."""
        if self._holder is not None:
            # A pid namespace ends with its first process, and unshare with its child.
            send([self._first_pid] if self._first_pid else [], signal.SIGKILL)
            if not self._first_pid:
                self._holder.kill()
            self._holder.wait(30)
            if self._holder.stdout is not None:
                self._holder.stdout.close()
            self._holder = None
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def connection(self) -> Iterator[libvirt.virConnect]:
        """A new libvirt connection."""
        import libvirt

        opened = libvirt.open(self.uri)
        try:
            yield opened
        finally:
            opened.close()

    def boot(self, name: str, max_mb: int, current_mb: int | None = None, *, ready: bool = True, **more: Any) -> Guest:
        """Start a transient guest; by default wait until its shell answers.

        Guests boot in parallel with ``ready=False`` and a later `Guest.wait`. Further settings are those of `domain_xml`.
        """
        with self.connection() as connection:
            connection.createXML(self.domain_xml(name, max_mb, current_mb, **more))
        guest = Guest(self, name)
        if ready:
            guest.wait()
        return guest

    def define(self, name: str, max_mb: int, current_mb: int | None = None, **more: Any) -> Guest:
        """Define a guest without starting it."""
        with self.connection() as connection:
            connection.defineXML(self.domain_xml(name, max_mb, current_mb, **more))
        return Guest(self, name)

    def domain_xml(
        self,
        name: str,
        max_mb: int,
        current_mb: int | None = None,
        *,
        stats_period_s: int | None = 1,
        balloon: bool = True,
        driver: bool = True,
        autodeflate: bool = False,
        swap_mb: int = 0,
        vcpus: int = 1,
    ) -> str:
        """XML of a guest; ``balloon`` is the device, ``driver`` whether the guest loads its driver."""
        image = build_guest()
        arguments = [KERNEL_ARGUMENTS, *(["noballoon"] if not driver else []), *(["swapdisk"] if swap_mb else [])]
        disk = ""
        if swap_mb:
            path = self.folder / f"guests/{name}.swap"
            with path.open("wb") as file:
                file.truncate(swap_mb * 2**20)
            disk = f"""<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/>
              <target dev='vda' bus='virtio'/></disk>"""
        device = "<memballoon model='none'/>"
        if balloon:
            deflate = " autodeflate='on'" if autodeflate else ""
            period = f"<stats period='{stats_period_s}'/>" if stats_period_s is not None else ""
            device = f"<memballoon model='virtio'{deflate}>{period}</memballoon>"
        return f"""<domain type='qemu'>
          <name>{escape(name)}</name><vcpu>{vcpus}</vcpu>
          <memory unit='MiB'>{max_mb}</memory><currentMemory unit='MiB'>{current_mb or max_mb}</currentMemory>
          <os><type arch='x86_64' machine='pc'>hvm</type>
            <kernel>{image.kernel}</kernel><initrd>{image.initrd}</initrd><cmdline>{" ".join(arguments)}</cmdline></os>
          <features><acpi/></features><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
          <devices>
            <emulator>{which("qemu-system-x86_64")}</emulator>
            <controller type='usb' model='none'/>
            {disk}
            <serial type='file'><source path='{self.folder}/guests/{name}.log'/><target port='0'/></serial>
            <serial type='unix'>
              <source mode='bind' path='{self.folder}/guests/{name}.sock'/><target port='1'/></serial>
            {device}
          </devices>
        </domain>"""

    def outer_pid(self, pid_file: Path) -> int:
        """Pid outside of the namespace of a process whose pid inside is in a file."""
        inner = pid_file.read_text().strip()
        for pid in self.processes():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                line = next(line for line in status.splitlines() if line.startswith("NSpid:"))
                if line.split()[-1] == inner:
                    return pid
        raise ProcessLookupError(f"{pid_file.name} names {inner}, which does not run")

    def processes(self, program: str = "") -> list[int]:
        """Pids of the processes of this host, outside of its namespace."""
        namespace = Path(f"/proc/{self._first_pid}/ns/pid").readlink()
        pids = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (folder / "ns/pid").readlink() == namespace and program in (
                    "",
                    (folder / "comm").read_text().strip(),
                ):
                    pids.append(int(folder.name))
        return sorted(pids)

    def _lay_out(self) -> None:
        """Write the files of libvirtd and sshd."""
        cached = cache_folder() / "capabilities"
        cached.mkdir(exist_ok=True)
        for name in (
            "etc/libvirt",
            "var/lib/libvirt",
            "var/log",
            "var/cache/libvirt/qemu",
            "run/sshd",
            "home",
            "guests",
        ):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "log").mkdir()
        (self.folder / "var/run").symlink_to("/run")
        # Detecting the capabilities of QEMU takes seconds: hosts share them.
        (self.folder / "var/cache/libvirt/qemu/capabilities").symlink_to(cached)
        etc = self.folder / "etc"
        for name in ("ld.so.cache", "nsswitch.conf"):
            with contextlib.suppress(OSError):
                shutil.copyfile(f"/etc/{name}", etc / name)
        if Path("/etc/alternatives").is_dir():
            shutil.copytree("/etc/alternatives", etc / "alternatives", symlinks=True)
        (etc / "passwd").write_text(PASSWD.format(home=self.folder / "home"))
        (etc / "shadow").write_text(SHADOW)
        (etc / "group").write_text(GROUP)
        (etc / "hosts").write_text(f"127.0.0.1 localhost {socket.gethostname()}\n")
        (etc / "libvirt/qemu.conf").write_text(QEMU_CONF)
        conf = LIBVIRTD_CONF.format(uuid=uuid.uuid4(), log=self.folder / "log/libvirtd")
        (self.folder / "libvirtd.conf").write_text(conf)

    def _hold(self) -> None:
        """Create the namespaces, which last as long as their first process."""
        with (self.folder / "log/holder").open("w") as log:
            self._holder = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL"),
                    *("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child=KILL"),
                    *(sys.executable, "-I", "-c", HOLDER, self.folder),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._holder.stdout is not None
        line = self._holder.stdout.readline()
        assert line == "ready\n", self.log()
        self._first_pid = int(Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()[0])


class Guest:
    """A guest of a `Host`."""

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = name

    @property
    def qemu_pid(self) -> int:
        """Pid of its QEMU, outside of the namespace."""
        return self.host.outer_pid(self.host.folder / f"run/libvirt/qemu/{self.name}.pid")

    def wait(self, seconds: float = 60.0) -> None:
        """Wait until its shell answers."""
        console = self.host.folder / f"guests/{self.name}.log"
        try:
            wait_for(lambda: READY.encode() in console.read_bytes(), seconds)
        except AssertionError as error:
            raise AssertionError(f"guest {self.name}: {console.read_text(errors='replace')[-2000:]}") from error
        self.run("true")

    def run(self, command: str, timeout_s: float = 30.0) -> str:
        """Run a command in the guest's shell; its output.

        Raises
        ------
        TimeoutError
            When it takes longer; it continues, and the next command waits for it.
        AssertionError
            When the command fails.
        """
        tag = uuid.uuid4().hex
        received = b""
        deadline = time.monotonic() + timeout_s
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(timeout_s)
            line.connect(str(self.host.folder / f"guests/{self.name}.sock"))
            # The empty line ends an incomplete earlier command; the marks differ from their echo.
            line.sendall(f"\nprintf '%s<' {tag}; {{ {command}; }}; printf '%s>%s\\n' {tag} $?\n".encode())
            while not (f"{tag}>".encode() in received and received.endswith(b"\n")):
                line.settimeout(max(0.01, deadline - time.monotonic()))
                part = line.recv(65536)
                if not part:
                    raise ConnectionError(f"guest {self.name} has ended: {received!r}")
                received += part
        if f"{tag}<".encode() not in received:
            raise ConnectionError(f"guest {self.name} did not receive the whole command: {received!r}")
        output, _, code = received.decode(errors="replace").partition(f"{tag}<")[2].partition(f"{tag}>")
        assert code.strip() == "0", f"{command!r} ended with {code.strip()} in guest {self.name}: {output}"
        return output.strip()

    def rss_mb(self) -> float:
        """Resident memory of its QEMU."""
        status = Path(f"/proc/{self.qemu_pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024

    def stats(self) -> dict[str, int]:
        """memoryStats of libvirt, in kB."""
        with self.host.connection() as connection:
            return dict(connection.lookupByName(self.name).memoryStats())

    def balloon_mb(self) -> float:
        """Memory that the balloon leaves to the guest."""
        return self.stats()["actual"] / 1024

    def set_memory(self, mb: int) -> None:
        """Request a balloon size; returns before the guest has followed."""
        import libvirt

        with self.host.connection() as connection:
            connection.lookupByName(self.name).setMemoryFlags(mb * 1024, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def destroy(self) -> None:
        """End the guest immediately; no error when it has ended."""
        import libvirt

        with self.host.connection() as connection:
            try:
                connection.lookupByName(self.name).destroy()
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
                    raise


class Sshd:
    """The sshd of a host on a loopback port, with new keys; ``with Sshd(host) as sshd``."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.port = free_port()
        self.folder = host.folder / f"sshd-{self.port}"

    def __enter__(self) -> Sshd:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, also after `stop`, with the same port and keys."""
        if not self.folder.is_dir():
            self.folder.mkdir()
            for key in ("host_key", "user_key"):
                command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", self.folder / key]
                subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
            (self.folder / "sshd.conf").write_text(SSHD_CONF.format(port=self.port, folder=self.folder))
            self.ssh.write_text(SSH_WRAPPER)
            self.ssh.chmod(0o755)
        self.host.inside(which("sshd") or "sshd", "-f", self.folder / "sshd.conf", "-E", self.host.folder / "log/sshd")
        wait_for(lambda: socket.create_connection(("127.0.0.1", self.port), 1).close() or True)

    @property
    def ssh(self) -> Path:
        """An ssh command that does not use ~/.ssh."""
        return self.folder / "ssh"

    def uri(self, *, port: int | None = None, keyfile: Path | None = None, ssh: Path | None = None) -> str:
        """libvirt URI over ssh; other ports, keys or ssh commands cause faults."""
        key = keyfile or self.folder / "user_key"
        return (
            f"qemu+ssh://root@127.0.0.1:{port or self.port}/system"
            f"?keyfile={key}&no_verify=1&no_tty=1&command={ssh or self.ssh}"
        )

    def sessions(self) -> list[int]:
        """Pids of the open sessions."""
        listening = self.host.outer_pid(self.folder / "sshd.pid")
        helpers = self.host.processes("virt-ssh-helper")
        return [pid for pid in self.host.processes("sshd") if pid != listening] + helpers

    def freeze_sessions(self) -> None:
        """Stop open sessions, as when a machine or its network hangs; new ones work."""
        send(self.sessions(), signal.SIGSTOP)

    def thaw_sessions(self) -> None:
        """Continue them."""
        send(self.sessions(), signal.SIGCONT)

    def stop(self) -> None:
        """End the sshd and its sessions."""
        with contextlib.suppress(OSError):
            pids = [*self.sessions(), self.host.outer_pid(self.folder / "sshd.pid")]
            send(pids, signal.SIGKILL)
            wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
