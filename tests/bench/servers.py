"""The NBD servers that are compared, each as a context manager that serves one image on one unix socket.

Inside `with server.serve(image) as export:` there are `export.uri` for fio and `export.pid` for /proc. A server whose
program is missing says so in `missing()`; the benchmark then prints that instead of numbers.
"""

import contextlib
import dataclasses
import glob
import os
import shutil
import signal
import subprocess
import time

CLOCK_TICK = os.sysconf("SC_CLK_TCK")


class ServerError(Exception):
    """A server did not start, or did not stop."""


@dataclasses.dataclass
class Image:
    """A disk image: `kind` is raw or vhd."""

    path: str
    kind: str


@dataclasses.dataclass
class Export:
    """A served image: the NBD URI, its socket, and the server's process."""

    uri: str
    socket: str
    pid: int

    def cpu_seconds(self):
        """User and system time of all threads, those that have ended included (proc(5), stat 14 and 15)."""
        with open(f"/proc/{self.pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICK

    def memory_kib(self, field):
        """One of the Vm… or Rss… lines of /proc/<pid>/status."""
        with open(f"/proc/{self.pid}/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith(field + ":"):
                    return int(line.split()[1])
        raise ServerError(f"/proc/{self.pid}/status has no {field}")


def _export(socket, pid):
    return Export(f"nbd+unix:///?socket={socket}", socket, pid)


class Background:
    """A server that stays in the foreground of its own process and makes its socket when it is ready."""

    def __init__(self, name, program, run_dir):
        self.name = name
        self.program = program
        self.socket = os.path.join(run_dir, name + ".sock")
        self.log = os.path.join(run_dir, name + ".log")

    def missing(self):
        """A sentence if the program is not installed."""
        if shutil.which(self.program):
            return None
        return f"{self.program} is not installed"

    def handles(self, image):
        """Whether this server reads such an image at all."""
        raise NotImplementedError

    def command(self, image):
        """The command line that serves `image` on `self.socket`."""
        raise NotImplementedError

    @contextlib.contextmanager
    def serve(self, image):
        """Starts the server and stops it afterwards."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)
        with open(self.log, "wb") as log:
            process = subprocess.Popen(self.command(image), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            self._wait_for_socket(process)
            yield _export(self.socket, process.pid)
        finally:
            self._stop(process)

    @staticmethod
    def _stop(process):
        # qemu-nbd forgets a signal that comes before its main loop runs, so it is told more than
        # once.
        for _ in range(30):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
                return
        process.kill()
        process.wait()

    def _wait_for_socket(self, process):
        deadline = time.monotonic() + 10
        while not os.path.exists(self.socket):
            if process.poll() is not None or time.monotonic() > deadline:
                with open(self.log, encoding="utf-8", errors="replace") as log:
                    raise ServerError(f"{self.name} did not start: {log.read().strip()[-300:]}")
            time.sleep(0.001)


class QemuNbd(Background):
    """qemu-nbd with one of its two engines, always past the page cache."""

    def __init__(self, aio, run_dir):
        super().__init__("qemu-" + {"io_uring": "uring", "native": "native"}[aio], "qemu-nbd", run_dir)
        self.aio = aio

    def handles(self, image):
        return True

    def command(self, image):
        form = {"raw": "raw", "vhd": "vpc", "qcow2": "qcow2"}[image.kind]
        return [self.program, "-e", "8", "-t", "-k", self.socket, "-f", form, "--cache=none",
                f"--aio={self.aio}", image.path]


class Nbdkit(Background):
    """nbdkit's file plugin. It has no O_DIRECT: what it reads comes from the page cache."""

    def __init__(self, run_dir):
        super().__init__("nbdkit", "nbdkit", run_dir)

    def handles(self, image):
        return image.kind == "raw"

    def command(self, image):
        return [self.program, "-f", "-U", self.socket, "file", f"file={image.path}"]


class NbdkitNull(Background):
    """A server that does no I/O at all: what the load generator can do at most."""

    def __init__(self, run_dir):
        super().__init__("ceiling", "nbdkit", run_dir)

    def handles(self, image):
        return True

    def command(self, image):
        return [self.program, "-f", "-U", self.socket, "null", str(2 << 30)]


class Copy(Background):
    """Our own nbd-copy, one thread that only copies: what the unix socket and the client allow."""

    def __init__(self, bin_dir, run_dir):
        super().__init__("copy", os.path.join(bin_dir, "nbd-copy"), run_dir)

    def handles(self, image):
        return True

    def command(self, image):
        return [self.program, self.socket, str(2 << 30)]


class Tapdisk:
    """Our own: tap-ctl create, the NBD socket of the run directory, tap-ctl destroy."""

    def __init__(self, bin_dir, run_dir, engine=None):
        self.name = "tapdisk" + (f"-{engine}" if engine else "")
        self.bin_dir = bin_dir
        self.run_dir = os.path.join(run_dir, self.name)
        self.env = dict(os.environ, TAPDISK_RUN_DIR=self.run_dir)
        if engine:
            self.env["TAPDISK_ENGINE"] = engine

    def missing(self):
        """A sentence if the programs are not built."""
        for program in ("tap-ctl", "tapdisk", "vhd-util"):
            if not os.access(os.path.join(self.bin_dir, program), os.X_OK):
                return f"{program} is not built ({self.bin_dir})"
        return None

    def handles(self, _image):
        return True

    def create(self, image):
        """tap-ctl create; returns the marker's path and the minor."""
        kind = {"raw": "aio", "vhd": "vhd", "qcow2": "qcow2"}[image.kind]
        marker = self._tap_ctl("create", "-a", f"{kind}:{image.path}").strip()
        return marker, int(marker.rpartition("-")[2])

    def find_socket(self, minor):
        """The NBD socket of `minor`, and the process from its name nbd<pid>.<minor>."""
        found = glob.glob(os.path.join(self.run_dir, f"nbd[0-9]*.{minor}"))
        if len(found) != 1:
            raise ServerError(f"{len(found)} sockets nbd*.{minor} in {self.run_dir}")
        pid = os.path.basename(found[0])[len("nbd"):].partition(".")[0]
        return found[0], int(pid)

    def destroy(self, pid, minor):
        """tap-ctl destroy."""
        self._tap_ctl("destroy", "-p", str(pid), "-m", str(minor))

    @contextlib.contextmanager
    def serve(self, image):
        """Creates the disk and destroys it afterwards."""
        _, minor = self.create(image)
        pid = None
        try:
            socket, pid = self.find_socket(minor)
            yield _export(socket, pid)
        finally:
            if pid is not None:
                self.destroy(pid, minor)

    def vhd_util(self, *arguments):
        """Runs our vhd-util."""
        return self._run("vhd-util", arguments)

    def _tap_ctl(self, *arguments):
        return self._run("tap-ctl", arguments)

    def _run(self, program, arguments):
        done = subprocess.run([os.path.join(self.bin_dir, program), *arguments], env=self.env, check=False,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, timeout=120, close_fds=False)
        if done.returncode != 0:
            raise ServerError(f"{program} {' '.join(arguments)}: exit {done.returncode}: "
                              f"{(done.stderr or done.stdout).strip()[-300:]}")
        return done.stdout


class Original(Tapdisk):
    """blktap's own tap-ctl and tapdisk, of a build that was installed below a prefix of its own.

    Its folder of sockets is compiled in. It wants root, and RLIMIT_MEMLOCK raised for it.
    """

    RUN_DIR = "/run/blktap-control"

    def __init__(self, prefix):
        super().__init__(os.path.join(prefix, "sbin"), "/")
        self.name = "blktap"
        self.run_dir = self.RUN_DIR
        self.program = os.path.join(prefix, "libexec", "tapdisk")

    def missing(self):
        """A sentence if it was not built, or not installed."""
        for program in (os.path.join(self.bin_dir, "tap-ctl"), self.program):
            if not os.access(program, os.X_OK):
                return f"{program} is not there"
        return None
