"""Hostile scripts of many kinds: each ends in time, with the reason named, and leaves nothing behind."""

import os
import socket
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

import fairway
from fairway.problem import Problem
from fairway.referee.heard import KeptEvents, KeptOutput
from fairway.referee.sandbox import Limits, clear_box, run_boxed, sandbox_fault


@pytest.fixture(scope="session")
def can_box():
    fault = sandbox_fault()
    if fault:
        pytest.skip(fault)


@pytest.fixture
def boxed(can_box, tmp_path):
    """Runs Python source in a box on tmp_path/work."""
    work = tmp_path / "work"
    work.mkdir()

    def run(source, command=("python", "script.py"), seconds=5.0, limits=None, **options):
        (work / "script.py").write_text(textwrap.dedent(source))
        return run_boxed(list(command), work, limits=Limits(seconds=seconds, **(limits or {})), **options)

    yield run
    assert clear_box(work)


def told(result, kind):
    return [event.what for event in result.events if event.kind == kind]


def alive(mark):
    """Processes of this machine whose last word is that."""
    return [one.pid for one in psutil.process_iter() if command_of(one)[-1:] == [mark]]


def command_of(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_decent_script_brings_back_its_output_its_code_and_its_files(boxed, tmp_path):
    result = boxed(
        """
        import os, sys
        print("hello", os.getcwd(), open("/box/given/a.txt").read())
        open("made.bin", "wb").write(b"12345")
        sys.stderr.write("trouble\\n")
        sys.exit(7)
        """,
        shared={"given": given(tmp_path)},
    )
    assert (result.code, result.stopped) == (7, None)
    assert result.output == "hello /box/work GIVEN\ntrouble\n"
    assert (tmp_path / "work" / "made.bin").read_bytes() == b"12345"
    assert "/box/given/a.txt" in told(result, "read") and told(result, "write") == ["/box/work/made.bin"]
    assert all(0 <= event.seconds <= result.seconds for event in result.events)


def given(tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "a.txt").write_text("GIVEN")
    folder.chmod(0o777)
    (folder / "a.txt").chmod(0o666)
    return folder


def test_a_trivial_box_costs_less_than_a_quarter_of_a_second(boxed):
    boxed("")
    begin = time.perf_counter()
    boxed("")
    assert time.perf_counter() - begin < 0.25


def test_only_the_given_environment_is_seen(boxed, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    result = boxed("import os; print(sorted(os.environ), os.environ['SEED'])", environment={"SEED": 42})
    assert "SECRET_TOKEN" not in result.output and "'SEED'" in result.output and "] 42" in result.output
    assert "'HOME'" in result.output and "'PATH'" in result.output


def test_a_death_by_signal_is_told_by_its_number(boxed):
    assert boxed("import os; os.kill(os.getpid(), 9)").code == 137
    assert boxed("import os; os.kill(os.getpid(), 11)").code == 139


def test_a_script_that_cannot_start_is_no_fault_of_the_box(boxed):
    assert boxed("", command=("no-such-program",)).code == 127
    assert boxed("def").code == 1


def test_what_is_not_there_cannot_be_shown(tmp_path):
    with pytest.raises(Problem, match="nowhere is not there"):
        run_boxed(["true"], tmp_path, shared={"data": tmp_path / "nowhere"})


def test_nothing_of_the_machine_is_seen(boxed, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    places = [
        secret,
        Path(fairway.__file__),
        Path(__file__),
        Path("/etc/shadow"),
        Path("/etc/hostname"),
        Path.home() / ".ssh",
        Path.home() / ".bashrc",
        Path("/proc/1/root/etc"),
        Path(f"/proc/{os.getpid()}"),
        Path("/sys/class"),
        Path("/var"),
        Path("/run"),
        Path("/home"),
        Path("/dev/sda"),
        Path("/dev/vda"),
        Path("/dev/kmsg"),
        Path("/dev/tty"),
    ]
    # The interpreter is there, wherever it is installed, and so are the folders on the way to it.
    shown = [Path(folder).absolute() for folder in (sys.prefix, sys.base_prefix)]
    places = [place for place in places if not any(one.is_relative_to(place) for one in shown)]
    on_the_way = sorted({one.parts[2] for one in shown if one.is_relative_to("/tmp")})
    result = boxed(
        f"""
        import os, glob
        for path in {list(map(str, places))}:
            for way in (os.listdir, open):
                try:
                    way(path)
                except OSError:
                    continue
                print("SEEN", path)
        print(os.listdir("/tmp") + os.listdir("/dev/shm"), sorted(os.listdir("/box")), len(glob.glob("/proc/[0-9]*")))
        """
    )
    assert result.output == f"{on_the_way} ['hook', 'trace', 'work'] 2\n"  # two processes: the box's first and the script


def test_what_is_shared_or_the_systems_cannot_be_written(boxed, tmp_path):
    folder = given(tmp_path)
    result = boxed(
        """
        import os, sys, sysconfig
        targets = ["/box/given/b", "/box/given/a.txt", "/usr/b", "/b", "/box/b", "/etc/passwd", "/box/hook/sitecustomize.py"]
        targets += [sys.prefix + "/b", sysconfig.get_paths()["purelib"] + "/b.pth", "/proc/sys/kernel/core_pattern"]
        for path in targets:
            try:
                open(path, "a").write("x")
                print("WRITTEN", path)
            except OSError as error:
                pass
        for act in (lambda: os.chmod("/box/given/a.txt", 0o777), lambda: os.remove("/box/given/a.txt"),
                    lambda: os.link("/box/given/a.txt", "/box/work/a"), lambda: os.mknod("sda", 0o60660, os.makedev(8, 0)),
                    lambda: os.chroot("/tmp"), lambda: os.setuid(0) if os.getuid() else os.setuid(1)):
            try:
                act()
                print("DONE", act)
            except OSError:
                pass
        """,
        shared={"given": folder},
    )
    assert (result.output, result.code) == ("", 0)
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt"] and (folder / "a.txt").read_text() == "GIVEN"


def test_rights_and_mounts_cannot_be_won_back(boxed, tmp_path):
    result = boxed(
        """
        import subprocess
        wanted = ("CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNew")
        lines = [line for line in open("/proc/self/status") if line.startswith(wanted)]
        print([int(line.split()[1], 16) for line in lines])
        remount = "mount -o remount,bind,rw /box/given && echo x > /box/given/b && echo BROKEN"
        new = ["unshare", "-Urm"]
        for words in (["sh", "-c", remount], [*new, "sh", "-c", remount], [*new, "umount", "/box/given"]):
            print(subprocess.run(words, capture_output=True, text=True).returncode != 0)
        """,
        shared={"given": given(tmp_path)},
    )
    assert result.output.splitlines() == ["[0, 0, 0, 0, 1]", "True", "True", "True"]
    assert not (tmp_path / "given" / "b").exists()


def test_there_is_no_network_but_the_boxs_own(boxed):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = boxed(
            f"""
            import socket
            for address in (("127.0.0.1", {port}), ("1.1.1.1", 443), ("8.8.8.8", 53)):
                try:
                    socket.create_connection(address, 2)
                    print("CONNECTED", address)
                except OSError:
                    pass
            try:
                socket.getaddrinfo("example.com", 80)
                print("RESOLVED")
            except OSError:
                pass
            own = socket.create_server(("127.0.0.1", 0))
            socket.create_connection(own.getsockname(), 2)
            print("own loop")
            """
        )
    assert result.output == "own loop\n"
    assert "('1.1.1.1', 443)" in told(result, "connect") and "name example.com 80" in told(result, "connect")


@pytest.mark.parametrize(
    "source",
    [
        "time.sleep(1000)",
        "while True: pass",
        """
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except OSError: pass
time.sleep(1000)""",
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64)); signal.pause()",
        "os.close(0); os.close(1); os.close(2); time.sleep(1000)",
        "os.closerange(0, 4096)\nwhile True: pass",
        "for n in range(8): threading.Thread(target=time.sleep, args=(1000,)).start()",
        "while True: os.waitpid(os.fork() or os._exit(0), 0)",
        """
while True:
    try: os.kill(os.getppid(), 9); os.kill(os.getppid(), 19)
    except OSError: pass""",
    ],
)
def test_time_is_up_for_every_script_that_will_not_end(boxed, source):
    begin = time.monotonic()
    result = boxed(f"import os, signal, threading, time\n{source}", seconds=0.4)
    assert (result.code, result.stopped) == (None, "time")
    assert time.monotonic() - begin < 3.0


def test_output_without_end_is_drained_and_cut(boxed):
    begin = time.monotonic()
    result = boxed("import os\nprint('HEAD')\nwhile True: os.write(1, b'y' * 65536)", seconds=1.0, limits={"output": 10_000})
    assert time.monotonic() - begin < 4  # nobody waits for anybody on the full pipe
    assert result.stopped == "time" and len(result.output) < 11_000
    assert result.output.startswith("HEAD\nyyy") and "bytes left out here" in result.output
    result = boxed("print('HEAD' + 'y' * 5_000_000 + 'TAIL')", limits={"output": 10_000})
    assert result.code == 0 and result.output.endswith("yyyTAIL\n") and "[4,990,009 bytes left out here]" in result.output


@pytest.mark.parametrize(
    "source",
    [
        "hog = []\nwhile True: hog.append(bytearray(b'x') * 30_000_000)",
        "import os, time\nfor n in range(4): os.fork()\nhog = bytearray(b'x') * 60_000_000; time.sleep(1000)",
        "import mmap, time\nhog = mmap.mmap(-1, 900_000_000)\nwhile True: hog[:] = b'x' * len(hog)",
    ],
)
def test_memory_without_end_is_stopped(boxed, source):
    result = boxed(source, seconds=20, limits={"memory": 400_000_000})
    assert (result.stopped, result.code) == ("memory", None) and result.seconds < 10


def test_shared_memory_and_temporary_files_are_bounded(boxed):
    result = boxed(
        """
        for path in ("/tmp/a", "/dev/shm/a"):
            try:
                with open(path, "wb") as file:
                    for n in range(1000): file.write(b"x" * 1_000_000)
            except OSError as error:
                print(error.strerror)
        """,
        limits={"memory": 400_000_000},
    )
    assert result.output == "No space left on device\n" * 2


@pytest.mark.parametrize(
    "source",
    [
        "n = 0\nwhile True:\n n += 1\n open(f'f{n}', 'wb').write(b'x' * 5_000_000)",
        "import time\nfor n in range(3000):\n open(f'f{n}', 'wb').write(b'x' * 100_000)\ntime.sleep(1000)",
        "import os\nos.mkdir('d')\nd = os.open('d', 0); os.chmod('d', 0o300)\nwhile True:\n"
        " f = os.open('d/f', os.O_CREAT | os.O_WRONLY); os.write(f, b'x' * 9_000_000); os.unlink('d/f')",
    ],
)
def test_disk_without_end_is_stopped(boxed, source):
    result = boxed(source, seconds=20, limits={"disk": 50_000_000})
    assert (result.stopped, result.code) == ("disk", None) and result.seconds < 10


def test_one_file_cannot_outgrow_the_limit(boxed, tmp_path):
    result = boxed("with open('big', 'wb') as file:\n while True: file.write(b'x' * 1_000_000)", limits={"disk": 20_000_000})
    assert result.stopped == "disk" or result.code != 0
    assert (tmp_path / "work" / "big").stat().st_size <= 20_000_000


@pytest.mark.parametrize(
    "source",
    [
        "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
        "import subprocess, sys\nfor n in range(100): subprocess.Popen([sys.executable, '-S', '-c', 'while 1: pass'])",
    ],
)
def test_a_fork_bomb_is_stopped(boxed, source):
    result = boxed(source, seconds=20, limits={"processes": 32})
    assert (result.stopped, result.code) == ("processes", None) and result.seconds < 10


def test_a_daemon_does_not_outlive_its_box(boxed):
    mark = f"box-daemon-{os.getpid()}"
    result = boxed(
        f"""
        import os, subprocess, sys
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(1000)", "{mark}"])
            os._exit(0)
        os.wait()
        print("left")
        """
    )
    assert (result.code, result.output) == (0, "left\n")
    assert alive(mark) == []


def test_signals_to_everybody_reach_nobody_outside(boxed):
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        for target in (-1, 0, 1):
            result = boxed(f"import os\nfor number in (15, 1, 2, 9): os.kill({target}, number)")
            assert result.stopped is None
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("number", [2, 15, 9])
def test_what_ends_the_referee_ends_the_box(can_box, tmp_path, number):
    mark = f"box-interrupted-{os.getpid()}"
    driver = f"""
import sys
sys.path[:0] = {sys.path}
from fairway.referee.sandbox import run_boxed
run_boxed(["python", "-c", "import time; time.sleep(1000)", "{mark}"], {str(tmp_path)!r})
"""
    process = subprocess.Popen([sys.executable, "-c", driver], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: alive(mark))
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == -number and ("KeyboardInterrupt" in errors) == (number == 2)
    wait_for(lambda: not alive(mark))


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_hostile_tree_is_removed_and_its_links_are_not_followed(boxed, tmp_path):
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "file").write_text("kept")
    mode = stat.S_IMODE(keep.stat().st_mode)
    result = boxed(
        f"""
        import os
        os.symlink({str(keep)!r}, "link")
        os.symlink("/", "root")
        os.symlink("loop", "loop")
        os.mkfifo("pipe")
        os.makedirs("locked/deeper")
        open("locked/deeper/file", "w").close()
        open(b"\\xff\\n\\x1b[2J", "w").close()
        open("-rf", "w").close()
        for number in range(1200):
            os.mkdir("d" * 60)
            os.chdir("d" * 60)
        os.chdir("/box/work")
        os.chmod("locked/deeper", 0)
        os.chmod("locked", 0)
        os.chmod(".", 0)
        """
    )
    assert (result.code, result.output) == (0, "")
    assert clear_box(tmp_path / "work")
    assert (keep / "file").read_text() == "kept" and stat.S_IMODE(keep.stat().st_mode) == mode
    assert clear_box(tmp_path / "work")  # what is gone is gone


def test_files_processes_and_libraries_are_told_with_their_process(boxed, tmp_path):
    (tmp_path / "work" / "helper.py").write_text("open('from_helper.txt', 'w').close()\n")
    result = boxed(
        """
        import ctypes, os, subprocess, sys
        import numpy as np
        import helper
        np.arange(5000, dtype=np.uint16).tofile("shard_val.bin")
        np.fromfile("shard_val.bin", dtype=np.uint16)
        np.memmap("shard_val.bin", dtype=np.uint16, mode="r")
        os.close(os.open("low.bin", os.O_RDWR | os.O_CREAT))
        os.rename("low.bin", "moved.bin")
        os.remove("moved.bin")
        try: open("/nowhere/train_shard.bin", "rb")
        except OSError: pass
        try: ctypes.CDLL("/box/work/evil.so")
        except OSError: pass
        subprocess.run([sys.executable, "-c", "open('child.txt', 'w')"])
        os.system("true 1")
        """
    )
    assert result.output == "" and result.code == 0
    reads, writes = told(result, "read"), told(result, "write")
    assert reads.count("/box/work/shard_val.bin") == 2 and "/nowhere/train_shard.bin" in reads
    assert "/box/work/helper.py" in reads and not any("site-packages" in path or "/lib/" in path for path in reads)
    assert {"shard_val.bin", "from_helper.txt", "low.bin", "child.txt"} == {Path(path).name for path in writes}
    assert told(result, "rename") == ["/box/work/low.bin -> /box/work/moved.bin"]
    assert told(result, "remove") == ["/box/work/moved.bin"]
    assert "/box/work/evil.so" in told(result, "load")
    assert any("child.txt" in command for command in told(result, "run")) and "true 1" in " ".join(told(result, "run"))
    assert len({event.process for event in result.events if event.kind == "write"}) == 2


def test_a_script_that_closes_every_file_number_is_still_traced_and_not_written_into(boxed, tmp_path):
    boxed("import os; os.closerange(3, 4096)\nwith open('a', 'w') as a, open('b', 'w') as b: b.write('hello')\nopen('c')")
    assert (tmp_path / "work" / "a").read_text() == "" and (tmp_path / "work" / "b").read_text() == "hello"


def test_a_flood_of_events_neither_fills_memory_nor_stops_the_script(boxed):
    source = "for n in range(30000):\n try: open('/no/%d' % n)\n except OSError: pass\nprint('done')"
    result = boxed(source, seconds=20)
    assert result.output == "done\n" and len([what for what in told(result, "read") if what.startswith("/no/")]) == 30_000
    forged = boxed("import os\nf = os.open('/box/trace', 1)\nfor n in range(100): os.write(f, b'x' * 60000)\nprint('done')")
    assert forged.output == "done\n"


def test_lines_of_the_trace_that_are_not_events_are_dropped(monkeypatch):
    monkeypatch.setattr("fairway.referee.heard.MOST_EVENTS", 100)
    trace = KeptEvents()
    for line in (
        b'[1.0, 2, "read", "/a"]',
        b"{}",
        b"[1.0]",
        b'[NaN, 2, "read", "/a"]',
        b'[1.0, 2, "boast", "/a"]',
        b"[" * 9999,
        b"\xff",
        b'[1.0, true, "read", "/a"]',
        b'[1e999, 2, "read", "/a"]',
        b'[1.5, 2, "step", "SGD"]',
    ):
        trace.add(line + b"\n")
    assert [event.kind for event in trace.since(0.0)] == ["read", "step"]
    trace.add(b"x" * 100_000)
    assert len(trace.rest) == 0
    trace.add(b'\n[1.0, 2, "read", "/a"]\n' * 105)
    assert len(trace.rows) == 100


def test_output_keeps_its_head_and_tail():
    kept = KeptOutput(10)
    for chunk in (b"01", b"234", b"56"):
        kept.add(chunk)
    assert kept.text() == "0123456"
    for _ in range(5000):
        kept.add(b"x" * 999)
    kept.add(b"vwxyz")
    assert kept.text() == "01234\n[4,995,002 bytes left out here]\nvwxyz" and len(kept.tail) < 1_100_000


TORCH_SCRIPT = """
import torch, io
torch.manual_seed(0)
model = torch.nn.Linear(40, 40)
class Own(torch.optim.Optimizer):
    def __init__(self, params): super().__init__(params, {})
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for one in group["params"]: one -= one.grad
both = [torch.optim.SGD(model.parameters(), lr=0.1), Own(model.parameters())]
def step():
    model(torch.randn(3, 40)).square().mean().backward()
    before = model.weight.clone()
    for one in both: one.step()
    return bool((model.weight != before).any())
print("before", step())
torch.save(model.state_dict(), "model.pt")
open("run.log", "w").write("x" * 5000); open("run.log").read()
print("between", step())
torch.load("model.pt")
print("after", step())
"""


@pytest.mark.parametrize("silence", [False, True])
def test_torch_trains_in_the_box_and_its_steps_can_be_silenced(boxed, silence):
    result = boxed(TORCH_SCRIPT, seconds=60, silence_steps=silence)
    assert result.output.split() == ["before", "True", "between", "True", "after", str(not silence)]
    assert told(result, "step") == ["SGD", "Own"] * (2 if silence else 3)
    writes = [path for path in told(result, "write") if path.startswith("/box/")]
    assert writes == ["/box/work/model.pt", "/box/work/run.log"]
    assert "/box/work/model.pt" in told(result, "read")
