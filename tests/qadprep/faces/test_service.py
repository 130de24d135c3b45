"""The detector process: the same answers as the detector itself, for several workers, and whoever dies."""

import gc
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Pipe
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.data import astronaut

from qadprep.errors import UserError
from qadprep.faces import handshake, wire
from qadprep.faces import service as service_module
from qadprep.faces.base import Face
from qadprep.faces.handshake import listen
from qadprep.faces.mtcnn import MtcnnDetector
from qadprep.faces.prepared import Shrink
from qadprep.faces.service import DetectorGone, DetectorService, RemoteDetector, devices_of, service_wanted
from qadprep.faces.service_process import Server, Statistics


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def service():
    with DetectorService("mtcnn") as service:
        yield service


@pytest.fixture
def own_service():
    """One that the test may kill."""
    with DetectorService("mtcnn", long_side_px=160) as service:
        yield service


def another(service):
    """The handle as a further worker would hold it."""
    return pickle.loads(pickle.dumps(service.remote))


def pictures():
    """Frames of several sizes: with a face, shrunk by the detector, without a face, tiny."""
    large = cv2.resize(astronaut(), (1000, 900), interpolation=cv2.INTER_CUBIC)
    return [astronaut(), large, np.zeros((90, 120, 3), np.uint8), large[::-1].copy(), np.full((5, 7, 3), 9, np.uint8)]


def numbers(faces):
    return [(face.box_xyxy.tolist(), face.landmarks_xy.tolist(), face.score) for face in faces]


def all_numbers(found):
    return [numbers(faces) for faces in found]


def rss_mib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} has no VmRSS")


def ended(pid, within_s=20):
    """Whether a process is gone, or dead and not yet collected, in time."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_answers_are_the_detector_s_own_bit_for_bit(service):
    expected = all_numbers(MtcnnDetector().detect(pictures()))
    assert [len(faces) for faces in expected] == [1, 1, 0, 0, 0]
    assert all_numbers(service.remote.detect(pictures())) == expected
    assert service.remote.detect([]) == []
    assert service.remote.name == "mtcnn"
    assert service.remote.identity() == MtcnnDetector().identity()


def test_two_clients_at_once_get_their_own_answers(service):
    direct = MtcnnDetector()
    frames = [pictures(), [frame[:, ::-1].copy() for frame in pictures()[::-1]]]
    expected = [all_numbers(direct.detect(part)) for part in frames]
    assert expected[0] != expected[1]
    clients = [another(service), another(service)]
    before = service.statistics()[0]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(4):
            found = list(pool.map(lambda client, part: all_numbers(client.detect(part)), clients, frames))
            assert found == expected
    after = service.statistics()[0]
    assert after.frames - before.frames == 8 * 5
    assert after.requests - before.requests == 8
    assert after.clients - before.clients == 2
    assert 5 <= after.largest_batch <= 10
    assert 0 < after.seconds_busy < after.seconds and 0 < after.use < 1


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((64, 64), np.uint8), r"frame 1: expected uint8 \(height, width, 3\) RGB, got uint8 \(64, 64\)"),
        (np.zeros((64, 64, 3), np.float32), r"frame 1: .* got float32 \(64, 64, 3\)"),
        ([[1, 2, 3]], "frame 1: .* got list"),
    ],
)
def test_wrong_frames_are_refused_at_the_client(service, frame, message):
    before = service.statistics()[0].requests
    with pytest.raises(ValueError, match=message):
        service.remote.detect([astronaut(), frame])
    assert service.statistics()[0].requests == before
    assert len(service.remote.detect([astronaut()])[0]) == 1


def test_many_frames_go_in_bounded_requests(service, monkeypatch):
    """At most so many frames and bytes a request; a single larger frame still goes."""
    monkeypatch.setattr(service_module, "_FRAMES_A_REQUEST", 3)
    client, blank = another(service), np.zeros((20, 20, 3), np.uint8)
    before = service.statistics()[0].requests
    assert client.detect([blank] * 7) == [[]] * 7
    assert service.statistics()[0].requests - before == 3
    monkeypatch.setattr(service_module, "REQUEST_BYTES_MOST", 3000)
    assert client.detect([blank] * 4) == [[]] * 4  # 1200 bytes each
    assert service.statistics()[0].requests - before == 5
    assert client.detect([np.zeros((40, 40, 3), np.uint8)] * 2) == [[]] * 2
    assert service.statistics()[0].requests - before == 7


def test_the_handle_needs_no_torch(service, tmp_path):
    """A worker that only has the handle stays small."""
    (tmp_path / "handle").write_bytes(pickle.dumps(service.remote))
    np.save(tmp_path / "frame.npy", astronaut())
    code = (
        "import pickle, sys, numpy; from pathlib import Path; folder = Path(sys.argv[1]); "
        "handle = pickle.loads((folder / 'handle').read_bytes()); "
        "found = handle.detect([numpy.load(folder / 'frame.npy')]); "
        "print(len(found[0]), sorted({'torch', 'torchvision', 'facenet_pytorch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 []"


def test_a_wrong_key_is_refused(service):
    client = another(service)
    client._key = b"wrong"
    with pytest.raises(DetectorGone, match="AuthenticationError"):
        client.detect([astronaut()])
    assert len(another(service).detect([astronaut()])[0]) == 1


def test_a_client_killed_in_mid_request_is_no_one_else_s_affair(service, tmp_path):
    expected = all_numbers(MtcnnDetector().detect([astronaut()]))
    (tmp_path / "handle").write_bytes(pickle.dumps(service.remote))
    np.save(tmp_path / "frame.npy", astronaut())
    code = (
        "import pickle, sys, numpy; from pathlib import Path; folder = Path(sys.argv[1]); "
        "handle = pickle.loads((folder / 'handle').read_bytes()); frame = numpy.load(folder / 'frame.npy'); "
        "handle.detect([frame]); print('started', flush=True)\nwhile True: handle.detect([frame] * 4)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    moments = random.Random(1)
    for process in processes:
        assert process.stdout.readline() == "started\n"
        time.sleep(moments.uniform(0, 0.4))
        process.kill()
        process.communicate()
        assert all_numbers(another(service).detect([astronaut()])) == expected
    # What the dead had mapped is unmapped: only clients that live hold memory there.
    service.statistics()
    mapped = [line for line in Path(f"/proc/{service.pids[0]}/maps").read_text().splitlines() if "qadprep" in line]
    assert len(mapped) <= 4, mapped


def test_a_server_killed_gives_every_waiting_client_one_clear_error(own_service):
    large = cv2.resize(astronaut(), (300, 300))
    clients = [another(own_service) for _ in range(3)]
    for client in clients:
        client.detect([large])
    errors = []

    def ask(client):
        try:
            while True:
                client.detect([large] * 30)
        except DetectorGone as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    own_service.check()
    os.kill(own_service.pids[0], signal.SIGKILL)
    for thread in threads:
        thread.join(30)
    assert len(errors) == 3
    for error in errors:
        assert "the detector process on cpu is gone" in error and "run the same command again" in error
        assert "\n" not in error
    assert ended(own_service.pids[0])
    with pytest.raises(DetectorGone, match="exit code -9"):
        own_service.check()
    with pytest.raises(DetectorGone):  # and so does every later call, of old clients and new ones
        clients[0].detect([large])
    with pytest.raises(DetectorGone):
        another(own_service).detect([large])
    assert pickle.loads(pickle.dumps(DetectorGone("text"))).args == ("text",)
    own_service.stop()
    assert own_service.statistics()[0].device == "cpu"


def test_the_server_ends_when_its_parent_is_killed():
    code = (
        "import time; from qadprep.faces.service import DetectorService; service = DetectorService('mtcnn'); "
        "service.start(); print(service.pids[0], flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        server = int(parent.stdout.readline())
        os.kill(server, 0)
    finally:
        parent.kill()
        parent.communicate()
    assert ended(server)


@pytest.mark.slow
def test_a_clean_end_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    resource_tracker.ensure_running()  # the first process that is spawned starts it, and it stays
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    service = DetectorService("mtcnn", long_side_px=160)
    with pytest.raises(ValueError, match="not been started"):
        service.remote  # noqa: B018
    with service:
        (pid,) = service.pids
        service.remote.detect([astronaut()])
    assert ended(pid)
    (last,) = service.statistics()
    assert (last.frames, last.requests, last.batches, last.largest_batch) == (1, 1, 1, 1)
    assert f"qadprep-{pid}" not in Path("/proc/net/unix").read_text()
    assert not [path for path in (*Path("/dev/shm").iterdir(), *tmp_path.iterdir()) if "qadprep" in path.name]
    service.stop()
    del service
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_memory_stays_flat(own_service):
    """200 requests of two 1080p frames; and what one huge frame took is given back."""
    frames = [np.full((1080, 1920, 3), value, np.uint8) for value in range(2)]
    for _ in range(10):
        own_service.remote.detect(frames)
    early = rss_mib(own_service.pids[0])
    for _ in range(200):
        own_service.remote.detect(frames)
    assert rss_mib(own_service.pids[0]) - early < 10
    huge = np.zeros((6000, 5000, 3), np.uint8)
    assert own_service.remote.detect([huge]) == [[]]
    own_service.statistics()
    assert rss_mib(own_service.pids[0]) - early < 40
    assert own_service.remote.detect([astronaut()])[0] != []


@pytest.mark.slow
def test_wrong_settings_and_broken_weights_end_before_any_worker_starts(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match="not a readable weights file"):
        DetectorService("retinaface", tmp_path / "w.pth").start()
    with pytest.raises(UserError, match="precision fp16 needs a CUDA device, got cpu"):
        DetectorService("mtcnn", precision="fp16").start()
    with pytest.raises(ValueError, match="frames_most"):
        DetectorService("mtcnn", frames_most=0)
    with pytest.raises(ValueError, match="expected a device"):
        DetectorService("mtcnn", device=[])


@pytest.mark.slow
def test_several_devices_share_the_workers():
    """Two processes; workers go to them in turn."""
    with DetectorService("mtcnn", device=["cpu", "cpu"], long_side_px=160) as service:
        assert len(set(service.pids)) == 2
        for _ in range(4):
            assert len(another(service).detect([astronaut()])[0]) == 1
        first, second = service.statistics()
        assert (first.requests, second.requests) == (2, 2)
        assert first.clients + second.clients == 4 + 2  # those sent on knocked at the first one too


def test_when_a_service_is_wanted(monkeypatch):
    assert service_wanted("cuda", 2) and service_wanted("cuda:1", 8)
    assert not service_wanted("cuda", 1) and not service_wanted("cpu", 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices_of("cuda") == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices_of("cuda:1") == ["cuda:1"] and devices_of("cpu") == ["cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices_of("cuda") == ["cuda"]


class Scripted:
    """A detector whose answer is the frame's first pixel as a score; a frame of 255 is an error."""

    name, shrink = "scripted", Shrink(100)

    def __init__(self):
        self.batches, self.hold = [], threading.Event()
        self.hold.set()

    def identity(self):
        return {"name": self.name}

    def detect_prepared(self, pictures):
        self.hold.wait(30)
        values = [int(picture.small_rgb[0, 0, 0]) for picture in pictures]
        self.batches.append(values)
        if 255 in values:
            raise KeyError("a frame of 255")
        return [[Face([0, 0, 1, 1], np.zeros((5, 2)), value)] for value in values]


@pytest.fixture
def scripted(tmp_path):
    """(detector, a function that makes clients) of a server in a thread, patient and with batches of up to 4."""
    detector, (ours, theirs) = Scripted(), Pipe()
    address = str(tmp_path / "socket")
    with listen(address) as listener:
        server = Server(detector, listener, b"key", theirs, "cpu", frames_most=4, patience_s=0.3)
        thread = threading.Thread(target=server.run)
        thread.start()
        yield (
            detector,
            lambda: RemoteDetector("scripted", {}, detector.shrink, ["cpu"], [address], b"key"),
        )
        detector.hold.set()
        ours.close()
        thread.join(30)
        assert not thread.is_alive()


def filled(*values):
    return [np.full((4, 4, 3), value, np.uint8) for value in values]


def scores(client, *values):
    return [faces[0].score for faces in client.detect(filled(*values))]


def connected(make, count):
    clients = [make() for _ in range(count)]
    for client in clients:
        assert scores(client, 0) == [0]
    return clients


def test_requests_that_wait_are_one_batch(scripted):
    detector, make = scripted
    clients = connected(make, 3)
    detector.batches.clear()
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(scores, clients, (1, 2, 3)))
    assert found == [[1], [2], [3]]
    assert [sorted(batch) for batch in detector.batches] == [[1, 2, 3]]


def test_a_batch_is_bounded_and_everyone_s_turn_comes(scripted):
    """Six clients ask three times for two frames each, of which two clients fit into a batch."""
    detector, make = scripted
    clients = connected(make, 6)
    detector.batches.clear()
    detector.hold.clear()
    threading.Timer(1, detector.hold.set).start()  # all ask by then, however late their threads start
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: [scores(clients[i], i + 1, i + 1) for _ in range(3)], range(6)))
    assert max(map(len, detector.batches)) == 4
    # In any four batches in a row all who still ask are served: nobody is passed over.
    for client in range(1, 7):
        served = [number for number, batch in enumerate(detector.batches) if client in batch]
        assert len(served) == 3 and max(np.diff([-1, *served])) <= 5


def test_a_lone_request_over_the_limit_goes_alone(scripted):
    detector, make = scripted
    assert scores(make(), *range(9)) == list(range(9))
    assert detector.batches == [list(range(9))]


def test_an_error_goes_to_the_one_whose_frames_raised_it(scripted):
    _, make = scripted
    clients = connected(make, 2)

    def ask(client, value):
        try:
            return scores(client, value)
        except KeyError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(ask, clients, (255, 7)))
    assert found == ["'a frame of 255'", [7]]
    assert scores(clients[0], 5) == [5]  # and the client goes on


def test_a_client_that_leaves_while_its_frames_are_looked_at(scripted):
    detector, make = scripted
    leaving, staying = connected(make, 2)
    detector.hold.clear()
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(scores, staying, 9)
        leaving._frames.send(leaving._connection, [detector.shrink(frame) for frame in filled(8)])
        time.sleep(0.5)
        leaving._connection.close()
        detector.hold.set()
        assert waiting.result(30) == [9]
    assert scores(staying, 6) == [6]


def test_an_interrupted_client_does_not_read_the_answer_to_its_last_question(scripted, monkeypatch):
    _, make = scripted
    (client,) = connected(make, 1)
    real = wire.SharedFrames.send

    def interrupted(self, connection, pictures):
        real(self, connection, pictures)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(wire.SharedFrames, "send", interrupted)
        client.detect(filled(1))
    assert scores(client, 2) == [2]


def test_errors_that_do_not_pickle_keep_their_text():
    from qadprep.faces.service_process import _sendable

    class Local(Exception):
        pass

    sent = _sendable(Local("what happened"))
    assert type(sent) is RuntimeError and str(sent) == "Local: what happened"
    assert type(_sendable(UserError("line"))) is UserError


def test_no_shared_memory_is_a_memory_error(scripted, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    _, make = scripted
    with monkeypatch.context() as patch, pytest.raises(MemoryError, match=r"no 4194304 bytes .* No space left"):
        patch.setattr(os, "posix_fallocate", full)
        make().detect(filled(1))
    assert scores(make(), 3) == [3]


corner = st.floats(-1e4, 1e4, width=32)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.lists(corner, min_size=12, max_size=12), st.floats(0.5, 1e4, width=32), st.floats(0, 1)),
            max_size=3,
        ),
        max_size=4,
    )
)
def test_packed_and_unpacked_are_inverse(frames):
    faces = [
        [
            Face([v[0], v[1], v[0] + 1000 + size, v[1] + 1000 + size], np.reshape(v[2:], (5, 2)), score)
            for v, size, score in frame
        ]
        for frame in frames
    ]
    again = wire.unpacked(*pickle.loads(pickle.dumps(wire.packed(faces))))
    assert all_numbers(again) == all_numbers(faces)
    assert all(face.box_xyxy.dtype == np.float32 for of_frame in again for face in of_frame)


def test_a_silent_stranger_holds_nobody_up_for_long(scripted, monkeypatch):
    monkeypatch.setattr(handshake, "HANDSHAKE_WITHIN_S", 1)
    _, make = scripted
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(make()._addresses[0])
        begun = time.monotonic()
        assert scores(make(), 3) == [3]
        assert 0.5 < time.monotonic() - begun < 10
        stranger.settimeout(10)
        while stranger.recv(1000):  # the challenge, then the end
            pass


def test_processes_of_other_users_are_sent_away_at_once(scripted, monkeypatch):
    _, make = scripted
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.settimeout(10)
            stranger.connect(make()._addresses[0])
            assert stranger.recv(1000) == b""
        with pytest.raises(DetectorGone):
            make().detect(filled(1))
    assert scores(make(), 3) == [3]


def test_a_server_that_says_nothing_is_gone(scripted, tmp_path, monkeypatch):
    monkeypatch.setattr(handshake, "_CONNECT_WITHIN_S", 1)
    with listen(str(tmp_path / "silent")):
        client = RemoteDetector("scripted", {}, Shrink(100), ["cpu"], [str(tmp_path / "silent")], b"key")
        with pytest.raises(DetectorGone, match="no connection within 1 s"):
            client.detect(filled(1))
    # One that lets clients in and does not tell them where to go.
    monkeypatch.setattr(service_module, "_ANSWER_WITHIN_S", 0.2)
    monkeypatch.setattr(Server, "_read", lambda self, client: client.recv() and None)
    _, make = scripted
    client = make()
    client._addresses *= 2
    with pytest.raises(DetectorGone, match=r"no answer within 0\.2 s"):
        client.detect(filled(1))


def test_use_of_a_process_that_never_ran_is_zero():
    assert Statistics("cpu").use == 0
    assert Statistics("cpu", seconds_busy=1, seconds=4).use == 0.25
